"""Segmented volumes in h5 files, one per case, read slice by slice.

A file holds `image` (M, H, W, D), one volume per modality, and `label` (H, W, D). A slice has one index along D. Chunks
that are one slice deep are read fastest; files with other chunks are read as well.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from recipe_common.data.samples.sampler import Key
from recipe_common.data.samples.seeding import derived_seed
from recipe_common.errors import RecipeError, message, require

Sample = tuple[Tensor, ...]
CHUNK_CACHE = {"rdcc_nbytes": 64 << 20, "rdcc_nslots": 10_007}
"""64 MiB: neighbouring slices share chunks where these are several slices deep, as h5py makes them unless told."""


@attrs.frozen
class Labels:
    """Which values a label may have.

    Args:
        count: Classes are 0 to count - 1; 0 is background.
        stored: Other values on disk, by the class that they stand for.
    """

    count: int
    stored: dict[int, int] = attrs.field(factory=dict)

    def classes(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return the class of each value.

        Raises:
            ValueError: Naming values that are no class.
        """
        known = np.isin(values, [*range(self.count), *self.stored])
        if not known.all():
            found = ", ".join(map(str, np.unique(values[~known])[:5]))
            expected = ", ".join(map(str, sorted({*range(self.count), *self.stored})))
            raise ValueError(f"labels {found}, where {expected} are known")
        classes = values.astype(np.int64)
        for value, index in self.stored.items():
            classes[values == value] = index
        return classes


@attrs.frozen
class Case:
    """One h5 file whose header is as it should be.

    Args:
        path: The file.
        shape: (H, W, D) of its volumes.
        labels: The values of its label.
    """

    path: Path
    shape: tuple[int, int, int]
    labels: Labels

    def slice(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """Read the centre of a slice; what is smaller than `size` gets a border of zeros.

        Args:
            index: Along D.
            size: Height and width of what is returned.

        Returns:
            Image (M, size, size), float32, and classes (size, size), int64.

        Raises:
            RecipeError: If the file is damaged, or holds a label that is no class or an image that is not finite.
        """
        (rows, into_rows), (columns, into_columns) = (window(length, size) for length in self.shape[:2])
        found = self._read("image", np.s_[:, rows, columns, index])
        image = np.zeros((len(found), size, size), np.float32)
        image[:, into_rows, into_columns] = found
        label = np.zeros((size, size), np.int64)
        try:
            label[into_rows, into_columns] = self.labels.classes(self._read("label", np.s_[rows, columns, index]))
            if not np.isfinite(image).all():
                raise ValueError("an image with values that are not finite")
        except ValueError as error:
            raise _unreadable(self.path, f"{error}, in slice {index}") from error
        return torch.from_numpy(image), torch.from_numpy(label)

    def slices_with_label(self, first: int) -> tuple[int, ...]:
        """Return which slices are not all background: of the `first` ones, else of the others, else all slices."""
        present = np.flatnonzero(self._read("label", np.s_[:]).any(axis=(0, 1)))
        early = present[present < first]
        chosen = early if len(early) else present if len(present) else np.arange(self.shape[2])
        return tuple(chosen.tolist())

    def check(self) -> None:
        """Decode all of the file; raises a RecipeError if that fails."""
        for index in range(self.shape[2]):
            self.slice(index, max(self.shape[:2]))

    def _read(self, name: str, part: Any) -> NDArray[Any]:
        try:
            values: NDArray[Any] = _opened(self.path, os.getpid())[name][part]
        except (OSError, KeyError, RuntimeError) as error:  # h5py raises all three for a damaged file
            raise _unreadable(self.path, str(error)) from error
        return values


@lru_cache(maxsize=1)
def _opened(path: Path, process: int) -> dict[str, Any]:
    """Keep the datasets of the file that was read last open, and so their caches; a forked process opens its own."""
    return dict(require("h5py").File(path, "r", **CHUNK_CACHE))


def window(length: int, size: int) -> tuple[slice, slice]:
    """Return which part of a side of `length` is its centre of `size`, and where in `size` that part lies."""
    count = min(length, size)
    skipped, border = (length - count) // 2, (size - count) // 2
    return slice(skipped, skipped + count), slice(border, border + count)


def open_case(path: Path, modalities: int, labels: Labels) -> Case:
    """Look at the header of an h5 file.

    Args:
        path: The file.
        modalities: M.
        labels: What its label may hold.

    Raises:
        RecipeError: If it is cut short or no h5 file, or its two datasets do not fit.
    """
    try:
        with require("h5py").File(path, "r") as file:
            datasets = {name: values for name, values in file.items() if hasattr(values, "dtype")}
            found = {name: (tuple(values.shape), values.dtype.kind) for name, values in datasets.items()}
    except (OSError, RuntimeError) as error:
        raise _unreadable(path, str(error)) from error
    image, image_kind = found.get("image", ((), ""))
    label, label_kind = found.get("label", ((), ""))
    fits = len(image) == 4 and image[0] == modalities and label == image[1:] and 0 not in image
    if not fits or image_kind != "f" or label_kind not in "iu":
        shapes = ", ".join(f"{name} {shape}" for name, (shape, _) in found.items()) or "no dataset"
        raise _unreadable(
            path, f"{shapes}, where `image` ({modalities}, H, W, D) of floats and `label` (H, W, D) of integers belong"
        )
    return Case(path, (label[0], label[1], label[2]), labels)


def open_cases(
    paths: Iterable[Path], modalities: int, labels: Labels, *, skip_bad: bool
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Look at the headers of h5 files.

    Args:
        paths: The files.
        modalities: M.
        labels: What their labels may hold.
        skip_bad: Whether to decode every file now and leave bad ones out, which takes about a second for 100 MB.

    Returns:
        The cases, and one line for each file left out.

    Raises:
        RecipeError: For a bad header, unless `skip_bad`.
    """
    cases, faults = [], []
    for path in paths:
        try:
            case = open_case(path, modalities, labels)
            if skip_bad:
                case.check()
        except RecipeError as error:
            if not skip_bad:
                raise
            faults.append(f"{path.name}: {message(error)}")
        else:
            cases.append(case)
    return tuple(cases), tuple(faults)


Augment = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]


class LabelledSlices(Dataset[Sample]):
    """One random slice per case that is not all background.

    Which one, and what becomes of it in training, depends on (seed, epoch, index); in evaluation on (seed, index).

    Args:
        cases: The cases.
        size: Height and width of the centre crop in pixels.
        first: Slices from this index on are drawn only where the earlier ones are all background.
        seed: Of all that is random.
        augment: From image (M, S, S), classes (S, S) and a generator to what is trained on; None: evaluation.
    """

    def __init__(
        self, cases: Sequence[Case], size: int, first: int, *, seed: int, augment: Augment | None = None
    ) -> None:
        self.cases, self.size, self.first = tuple(cases), size, first
        self.seed, self.augment = seed, augment
        self._candidates: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: Key) -> Sample:
        """Return one image (1, S, S) per modality, float32, and the classes (S, S), int64."""
        epoch, index = key
        numbers = (self.seed, index) if self.augment is None else (self.seed, epoch, index)
        random = np.random.default_rng(derived_seed(*numbers))
        if index not in self._candidates:
            self._candidates[index] = self.cases[index].slices_with_label(self.first)
        image, label = self.cases[index].slice(int(random.choice(self._candidates[index])), self.size)
        if self.augment is not None:
            image, label = self.augment(image, label, random)
        return (*image.unsqueeze(1), label)


class AllSlices(Dataset[Sample]):
    """Every slice of every case: those of the first case in order, then those of the second, ...

    Args:
        cases: The cases; they have equally many slices.
        size: Height and width of the centre crop in pixels.
    """

    def __init__(self, cases: Sequence[Case], size: int) -> None:
        self.cases, self.size = tuple(cases), size

    @cached_property
    def depth(self) -> int:
        """Slices of a case; 1 where there is no case."""
        return slices_per_case(self.cases) if self.cases else 1

    def __len__(self) -> int:
        return len(self.cases) * self.depth

    def __getitem__(self, key: Key) -> Sample:
        """Return one image (1, S, S) per modality, float32, and the classes (S, S), int64."""
        case, index = divmod(key[1], self.depth)
        image, label = self.cases[case].slice(index, self.size)
        return (*image.unsqueeze(1), label)


def rotate_flip_noise(image: Tensor, label: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Augment a slice as the CGGM code does.

    It is rotated by 0, 90 or 180 degrees, then flipped along one of its two sides. One in ten gets Gaussian noise, of a
    standard deviation that is drawn evenly from 0 to 0.1, on all modalities.

    Args:
        image: (M, S, S).
        label: (S, S).
        random: Decides.
    """
    turns, side = int(random.integers(3)), int(random.integers(2))
    image, label = (each.rot90(turns, (-2, -1)).flip(side - 2) for each in (image, label))
    if random.random() < 0.1:
        noise = random.normal(0, random.uniform(0, 0.1), tuple(image.shape))
        image = image + torch.from_numpy(noise.astype(np.float32))
    return image.contiguous(), label.contiguous()


def slices_per_case(cases: Sequence[Case]) -> int:
    """Return how many slices each case has.

    Raises:
        RecipeError: If they differ: what is measured per volume counts on it.
    """
    depths = {case.shape[2]: case for case in cases}
    if len(depths) != 1:
        found = ", ".join(f"{depth} in {depths[depth].path.name}" for depth in sorted(depths)[:4])
        raise RecipeError(
            f"Expected equally many slices in all volumes. Found {found or 'no volume'}. "
            "Fix: leave out those of another data set, or pad them."
        )
    return next(iter(depths))


def _unreadable(path: Path, reason: str) -> RecipeError:
    return RecipeError(
        f"Expected a volume and its labels in {path}. Found: {reason}. "
        "Fix: download or prepare the file again, or leave it out with --skip-bad."
    )
