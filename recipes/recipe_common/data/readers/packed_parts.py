"""Parts of packed files of sequence features: shapes of their arrays, and checks of one split.

N segments, T steps in time, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from recipe_common.errors import RecipeError

MODALITIES = ("text", "audio", "vision")
SPLITS = {"train": "train", "val": "valid", "test": "test"}
"""Names of the splits here, and in the files."""


@attrs.frozen
class Shapes:
    """Shapes in packed files of one kind: (steps, features) of every modality. Steps of None: any number.

    Attributes:
        name: Name of the kind in messages, such as `aligned`.
    """

    name: str
    text: tuple[int | None, int]
    audio: tuple[int | None, int]
    vision: tuple[int | None, int]

    def fit(self, found: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether arrays of these shapes by modality, (N, T, D) each, are of this kind."""
        return all(
            len(shape) == 3 and shape[1] == (steps or shape[1]) and shape[2] == features
            for shape, (steps, features) in ((found[modality], getattr(self, modality)) for modality in MODALITIES)
        )

    def __str__(self) -> str:
        parts = [_shape(modality, getattr(self, modality)) for modality in MODALITIES]
        return f"{self.name}: {', '.join(parts)}"


@attrs.frozen
class PackedPart:
    """Checks of one split of a packed file; the messages name the file and the split.

    Attributes:
        path: The file.
        split: Name of the split in the file; empty: the file as a whole.
        origin: Whose file is expected, such as `MMSA`.
    """

    path: Path
    split: str
    origin: str

    def require(self, content: Any, keys: Iterable[str]) -> None:
        """Check that `content` is a dict with some keys.

        Raises:
            RecipeError: If it is not.
        """
        wanted = tuple(keys)
        if isinstance(content, dict) and set(wanted) <= set(content):
            return
        found = str(sorted(map(str, content))) if isinstance(content, dict) else type(content).__name__
        where = f" under {self.split}" if self.split else ""
        raise RecipeError(
            f"{self.path} should have the keys {', '.join(wanted)}{where}", found=found, fix=self._take_it
        )

    def numbers(self, name: str, values: Any) -> NDArray[Any]:
        """Return an array of numbers.

        Raises:
            RecipeError: If the values are something else, or sequences of unequal lengths.
        """
        try:
            array = np.asarray(values)
        except ValueError as error:  # sequences of unequal lengths
            raise self._not_numbers(name, str(error)) from error
        if array.dtype.kind not in "fiub":
            raise self._not_numbers(name, f"dtype {array.dtype}")
        return array

    def kind(self, arrays: Mapping[str, NDArray[Any]], kinds: Sequence[Shapes]) -> Shapes:
        """Return the first of `kinds` that fits the arrays by modality.

        Raises:
            RecipeError: If none does, or if the arrays have different numbers of segments.
        """
        found = {modality: array.shape for modality, array in arrays.items()}
        counts = {shape[:1] for shape in found.values()}
        for kind in kinds:
            if kind.fit(found) and len(counts) == 1:
                return kind
        text = ", ".join(f"{modality} {shape}" for modality, shape in found.items())
        expected = "; or ".join(str(kind) for kind in kinds)
        raise RecipeError(
            f"{self.path} should hold, with equal N, {expected}",
            found=f"{text} in {self.split}",
            fix="take one of these files",
        )

    def labels(
        self, name: str, values: Any, count: int, label_range: tuple[float, float], columns: Sequence[int] = (1,)
    ) -> NDArray[np.float32]:
        """Return labels (N,).

        Args:
            name: Key of the labels.
            values: Labels (N,), (N, C) or (N, 1, C).
            count: Number of segments N.
            label_range: Smallest and largest label that may occur.
            columns: Numbers of labels of a segment C that are accepted; the first of several counts.

        Raises:
            RecipeError: If there are not as many, or if one is out of range or not finite.
        """
        array = self.numbers(name, values)
        if array.shape[:1] != (count,) or array.size not in [count * number for number in columns]:
            raise RecipeError(
                f"{self.path} should have one label per segment, ({count}, 1, 1)",
                found=f"{array.shape} in {self.split}",
                fix="take the packed file with one label, not with emotions too",
            )
        labels = array.reshape(count, -1)[:, 0].astype(np.float32) if count else np.zeros(0, np.float32)
        check_range(self.path, self.split, labels, label_range)
        return labels

    def ids(self, values: Any, count: int) -> tuple[str, ...]:
        """Return names of the segments; without values, their row numbers.

        Raises:
            RecipeError: If there are not as many, or if they are no list.
        """
        if values is None:
            return tuple(f"row {row}" for row in range(count))
        is_list = isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.ndim > 0)
        if not is_list or len(values) != count:
            found = str(len(values)) if is_list else type(values).__name__
            raise RecipeError(
                f"{self.path} should have {count} ids in {self.split}", found=found, fix="download it again"
            )
        return tuple(_id(value) for value in values)

    @property
    def _take_it(self) -> str:
        return f"take the packed file of {self.origin}"

    def _not_numbers(self, name: str, found: str) -> RecipeError:
        return RecipeError(
            f"{self.path} should hold an array of numbers under {self.split}, {name}", found=found, fix=self._take_it
        )


def finite(values: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
    """Return writable float32 values with 0 in place of values that are not finite, and the number of these."""
    with np.errstate(over="ignore"):
        array = np.require(values, np.float32, "W")
    bad = ~np.isfinite(array)
    array[bad] = 0
    return array, int(bad.sum())


def check_range(path: Path, split: str, labels: NDArray[np.float32], label_range: tuple[float, float]) -> None:
    """Check the range of labels.

    Args:
        path: Their file.
        split: Their split.
        labels: Labels (N,).
        label_range: Smallest and largest label that may occur.

    Raises:
        RecipeError: If one is outside of the range or not finite.
    """
    low, high = label_range
    outside = ~((labels >= low) & (labels <= high))  # true for NaN
    if outside.any():
        row = int(outside.argmax())
        raise RecipeError(
            f"Labels in {path} should be from {low:g} to {high:g}",
            found=f"{labels[row]:g} in row {row} of {split}, and {int(outside.sum()) - 1} more",
            fix="put the file of this dataset there",
        )


def _id(value: Any) -> str:
    """Decode an id: str or bytes, or an array such as [video, start, end]."""
    if isinstance(value, np.ndarray | list | tuple):
        return " ".join(_id(part) for part in np.asarray(value).reshape(-1).tolist())
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _shape(modality: str, size: tuple[int | None, int]) -> str:
    steps, features = size
    return f"{modality} (N, {'T' if steps is None else steps}, {features})"
