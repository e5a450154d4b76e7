"""Reads segmented volumes in h5 files, one per case, slice by slice; datasets of slices.

A file holds `image` (M, H, W, D), one volume per modality, and `label` (H, W, D). A slice has one index along D. Chunks
that are one slice deep are read fastest; files with other chunks are read as well.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from recipe_common.data.cache.headers import Facts, Header, HeaderStore
from recipe_common.data.readers.decoding import decoding
from recipe_common.data.readers.non_files import file_error
from recipe_common.data.samples.sampler import Key
from recipe_common.data.samples.seeding import derived_seed
from recipe_common.errors import RecipeError, message, require

Sample = tuple[Tensor, ...]
CHUNK_CACHE = {"rdcc_nbytes": 64 << 20, "rdcc_nslots": 10_007}
"""64 MiB: neighbouring slices share chunks where these are several slices deep, as h5py makes them by default."""


@attrs.frozen
class Labels:
    """Values of labels, in memory and on disk.

    Args:
        count: Number of classes, 0 to count - 1; 0 is background.
        stored: Classes of other values on disk, by value.
        absent: Values below `count` that stand for no class on disk.
        fix: What to do where a file has other values; None: nothing is said.
    """

    count: int
    stored: dict[int, int] = attrs.field(factory=dict)
    absent: frozenset[int] = frozenset()
    fix: str | None = None

    def classes(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return the class of each value.

        Raises:
            ValueError: If a value is no class.
        """
        expected = sorted({*range(self.count), *self.stored} - self.absent)
        known = np.isin(values, expected)
        if not known.all():
            wrong, found = (", ".join(map(str, np.unique(each)[:8])) for each in (values[~known], values))
            advice = "" if self.fix is None else f" (found {found}): {self.fix}"
            raise ValueError(f"labels {wrong}, where {', '.join(map(str, expected))} are known{advice}")
        classes = values.astype(np.int64)
        for value, index in self.stored.items():
            classes[values == value] = index
        return classes


@attrs.frozen
class Case:
    """One h5 file with a checked header.

    Args:
        path: The file.
        shape: (H, W, D) of its volumes.
        labels: Values that its label may have.
    """

    path: Path
    shape: tuple[int, int, int]
    labels: Labels

    def slice(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """Read the centre of a slice; a side shorter than `size` gets a border of zeros.

        Args:
            index: Place of the slice along D.
            size: Height and width of the result.

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
        """Return the slices that are not all background: among the `first` ones, else among the others, else all."""
        present = np.flatnonzero(self._read("label", np.s_[:]).any(axis=(0, 1)))
        early = present[present < first]
        chosen = early if len(early) else present if len(present) else np.arange(self.shape[2])
        return tuple(chosen.tolist())

    def check(self) -> None:
        """Decode the file whole.

        Raises:
            RecipeError: If that fails.
        """
        for index in range(self.shape[2]):
            self.slice(index, max(self.shape[:2]))

    def _read(self, name: str, part: Any) -> NDArray[Any]:
        with decoding(partial(_unreadable, self.path)):
            values: NDArray[Any] = _opened(self.path, os.getpid())[name][part]
            return values


@lru_cache(maxsize=1)
def _opened(path: Path, process: int) -> dict[str, Any]:
    """Return the datasets of a file; those of the last file stay open with their caches, one for each process."""
    return dict(require("h5py").File(path, "r", **CHUNK_CACHE))


def window(length: int, size: int) -> tuple[slice, slice]:
    """Return the centre part of a side of `length`, at most `size` long, and the place of that part in `size`."""
    count = min(length, size)
    skipped, border = (length - count) // 2, (size - count) // 2
    return slice(skipped, skipped + count), slice(border, border + count)


def open_case(path: Path, modalities: int, labels: Labels) -> Case:
    """Check the header of an h5 file.

    Args:
        path: The file.
        modalities: Number of modalities, M.
        labels: Values that its label may have.

    Raises:
        RecipeError: If it is cut short or no h5 file, or its two datasets do not fit.
    """
    return _case(modalities, labels, path, [_read_header(path)])


def _read_header(path: Path) -> Facts:
    """Return name, shape and kind of numbers of each dataset."""
    with decoding(partial(_unreadable, path)), require("h5py").File(path, "r") as file:
        datasets = {name: values for name, values in file.items() if hasattr(values, "dtype")}
        return [[name, [*values.shape], values.dtype.kind] for name, values in datasets.items()]


def _case(modalities: int, labels: Labels, path: Path, facts: Sequence[Facts]) -> Case:
    found = {name: (tuple(shape), kind) for name, shape, kind in facts[0]}
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
    files: Mapping[str, Sequence[Path]], modalities: int, labels: Labels, store: HeaderStore, *, skip_bad: bool
) -> dict[str, tuple[tuple[Case, ...], tuple[str, ...]]]:
    """Check the headers of h5 files.

    Args:
        files: The files of each part.
        modalities: Number of modalities, M.
        labels: Values that their labels may have.
        store: Facts of earlier runs.
        skip_bad: Whether to decode every file now and leave bad ones out, which takes about a second for 100 MB.

    Returns:
        For each part the cases, and one line for each file left out.

    Raises:
        RecipeError: For bad headers, unless `skip_bad`.
    """
    paths = [path for part in files.values() for path in part]
    header = Header("volume", _read_header, partial(_case, modalities, labels))
    found = dict(zip(paths, store.results(header, paths), strict=True))
    bad = [each for each in found.values() if isinstance(each, RecipeError)]
    if bad and not skip_bad:
        raise store.error(bad, len(paths), "cases")
    if skip_bad:
        found = {path: _decoded(case) for path, case in found.items()}
    return {part: _sorted_out([(path, found[path]) for path in paths]) for part, paths in files.items()}


def _decoded(case: Case | RecipeError) -> Case | RecipeError:
    """Return a case, or an error if it cannot be decoded whole."""
    if isinstance(case, Case):
        try:
            case.check()
        except RecipeError as error:
            return error
    return case


def _sorted_out(found: Sequence[tuple[Path, Case | RecipeError]]) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Return the cases, and a line for each file with an error."""
    cases = tuple(case for _, case in found if isinstance(case, Case))
    return cases, tuple(f"{path.name}: {message(error)}" for path, error in found if isinstance(error, RecipeError))


Augment = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]


class LabelledSlices(Dataset[Sample]):
    """One random slice per case that is not all background.

    In training the slice and its augmentation depend on (seed, epoch, index); in evaluation the slice depends on (seed,
    index).

    Args:
        cases: The cases.
        size: Height and width of the centre crop in pixels.
        first: Slices from this index on are drawn only where the earlier ones are all background.
        seed: Seed of all random choices.
        augment: From image (M, S, S), classes (S, S) and a generator to image and classes for training; None:
            evaluation.
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
        cases: The cases, with equally many slices.
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
    """Augment a slice as in the code of Guo et al. (NeurIPS 2024).

    It is rotated by 0, 90 or 180 degrees, then flipped along one of its two sides. One in ten gets Gaussian noise, with
    a standard deviation drawn evenly from 0 to 0.1, on all modalities.

    Args:
        image: Modalities of the slice, (M, S, S).
        label: Classes, (S, S).
        random: Generator of all random choices.
    """
    turns, side = int(random.integers(3)), int(random.integers(2))
    image, label = (each.rot90(turns, (-2, -1)).flip(side - 2) for each in (image, label))
    if random.random() < 0.1:
        noise = random.normal(0, random.uniform(0, 0.1), tuple(image.shape))
        image = image + torch.from_numpy(noise.astype(np.float32))
    return image.contiguous(), label.contiguous()


def slices_per_case(cases: Sequence[Case]) -> int:
    """Return the number of slices of each case.

    Raises:
        RecipeError: If the cases differ, as metrics by volume need equal numbers.
    """
    depths = {case.shape[2]: case for case in cases}
    if len(depths) != 1:
        found = ", ".join(f"{depth} in {depths[depth].path.name}" for depth in sorted(depths)[:4])
        raise RecipeError(
            "All volumes should have equally many slices",
            found=found or "no volume",
            fix="leave out those of another data set, or pad them",
        )
    return next(iter(depths))


def _unreadable(path: Path, found: str) -> RecipeError:
    return file_error(
        path,
        f"{path} should hold a volume and its labels",
        found=found,
        fix="download or prepare the file again",
        otherwise=", or leave it out with `--skip-bad`",
    )
