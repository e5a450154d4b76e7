"""Pictures and class indices in npy files, read through memory maps and never loaded as a whole."""

from collections.abc import Sequence
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe_common.data.readers.decoding import open_npy
from recipe_common.data.readers.non_files import file_error
from recipe_common.errors import RecipeError

PIECE = 1_000
"""Rows of an array of floats that are read at a time; the first of them give its range, as all would be gigabytes."""
UNIT_RANGE = 2.0
"""Floats up to this are brightness from 0 to 1, with some ringing of a lossy compression; up to 255 otherwise."""


class ArrayFile:
    """An npy file of numbers, as a memory map.

    It is pickled as a path: a memory map itself would reach the workers of a DataLoader as a copy of the whole array
    wherever they do not start by a fork.

    Args:
        path: The file.

    Raises:
        RecipeError: If it is absent, cut off, no npy file, or holds something other than numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.array = _open(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayFile, (self.path,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, samples first."""
        return tuple(self.array.shape)

    @property
    def is_float(self) -> bool:
        """Whether values may be NaN or infinite."""
        return self.array.dtype.kind == "f"

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return a row, or several."""
        return self.array[index]


def _open(path: Path) -> NDArray[Any]:
    array = open_npy(path, partial(_incomplete, path))
    if array.dtype.kind not in "uif" or array.ndim == 0:
        raise RecipeError(
            f"{path} should be an npy file of integers or floats, samples first",
            found=f"{array.dtype} of shape {array.shape}",
            fix="save it as uint8",
        )
    return array


def _incomplete(path: Path, found: str) -> RecipeError:
    return file_error(
        path,
        f"{path} should be a complete npy file of numbers",
        found=found,
        fix="unpack or download it again. An array of Python objects is a pickle, which is not opened because that "
        "can run code: save it as numbers",
    )


class Pictures:
    """Rows of an npy file as pictures or spectrograms with one channel.

    Args:
        file: Shape (N, S * S), (N, S, S) or (N, 1, S, S).
        size: S in pixels.
        rows: Numbers of the rows, in order.
        scale: Factor of the values.

    Raises:
        RecipeError: If the file has another shape.
    """

    def __init__(self, file: ArrayFile, size: int, rows: Sequence[int] | NDArray[np.int64], scale: float) -> None:
        check_picture_shape(file, size)
        self.file, self.size, self.rows, self.scale = file, size, rows, scale

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """Return float32 of shape (1, S, S).

        Raises:
            RecipeError: If a value is NaN or infinite.
        """
        row = int(self.rows[index])
        values = self.file[row]
        if self.file.is_float and not np.isfinite(values).all():
            raise RecipeError(
                f"{self.file.path} should hold finite values",
                found=f"NaN or infinity in row {row:,}",
                fix="restore the file, or leave such samples out with `--skip-bad`",
            )
        picture = np.multiply(values, self.scale, dtype=np.float32, casting="unsafe")
        return torch.from_numpy(picture.reshape(1, self.size, self.size))


def check_picture_shape(file: ArrayFile, size: int) -> None:
    """Check that the rows of a file are pictures of one size.

    Args:
        file: The file.
        size: Height and width in pixels.

    Raises:
        RecipeError: If they are not; the message names the size that would fit, if there is one.
    """
    if file.shape[1:] in ((size * size,), (size, size), (1, size, size)):
        return
    side = isqrt(int(np.prod(file.shape[1:])))
    hint = f" (pictures of {side} x {side}?)" if side * side == np.prod(file.shape[1:]) and len(file.shape) > 1 else ""
    raise RecipeError(
        f"{file.path} should have shape (N, {size * size}) or (N, {size}, {size})",
        found=f"{file.shape}{hint}",
        fix="put the right file there, or give the size of its pictures as a flag",
    )


def brightness_scale(file: ArrayFile) -> float:
    """Return the factor that brings brightness to 0..1: 1/255 for integers, 1/255 or 1 for floats.

    The range of floats is taken from the first rows.
    """
    if not file.is_float or len(file) == 0:
        return 1 / 255
    largest = float(np.nanmax(np.abs(file[:PIECE])))
    return 1.0 if largest <= UNIT_RANGE else 1 / 255


def rows_not_finite(file: ArrayFile) -> NDArray[np.int64]:
    """Return the rows with a NaN or infinite value; reads all of a file of floats, piece by piece."""
    if not file.is_float:
        return np.zeros(0, np.int64)
    pieces = (file[start : start + PIECE] for start in range(0, len(file), PIECE))
    good = [np.isfinite(piece).reshape(len(piece), -1).all(axis=1) for piece in pieces]
    return np.flatnonzero(~np.concatenate(good)) if good else np.zeros(0, np.int64)


def read_class_indices(path: Path, num_classes: int) -> Tensor:
    """Read class indices from an npy file of shape (N,) or (N, 1), integers or whole floats.

    Returns:
        int64 of shape (N,).

    Raises:
        RecipeError: If the shape is another one, or a value is no class index; the message names its row.
    """
    file = ArrayFile(path)
    if file.shape[1:] not in ((), (1,)):
        raise RecipeError(
            f"{path} should hold class indices of shape (N,)", found=str(file.shape), fix="restore the file"
        )
    values = file[:].reshape(-1)
    bad = np.flatnonzero(~np.isin(values, np.arange(num_classes)))
    if bad.size:
        raise RecipeError(
            f"{path} should hold class indices from 0 to {num_classes - 1}",
            found=f"{values[bad[0]]} in row {bad[0]:,}, and {bad.size - 1:,} more",
            fix="restore the file",
        )
    return torch.from_numpy(values.astype(np.int64))
