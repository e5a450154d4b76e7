"""Spectrograms stored in npy, pkl or pt files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import torch
from torch import Tensor

from recipe_common.data.cache.headers import Facts, Header
from recipe_common.data.readers.decoding import decoding, open_npy
from recipe_common.data.readers.non_files import check_file
from recipe_common.data.readers.pickles import load_pickle
from recipe_common.data.readers.waveforms import OTHERWISE, unreadable
from recipe_common.errors import RecipeError


@attrs.frozen
class StoredSpectrogram:
    """Reads a spectrogram that other code has computed: a matrix in a npy, pkl or pt file, taken as it is.

    Such files are made by the code of Peng et al. (CVPR 2022) for Kinetics-Sounds and read by that of BalanceBenchmark,
    Fan et al. (CVPR 2023) and Wei et al. (ECCV 2024). A pickle may hold arrays and plain containers only, and a pt file
    tensors: neither can run code.

    Args:
        shape: Shape of all spectrograms; None accepts any.
    """

    endings: ClassVar[tuple[str, ...]] = (".npy", ".pkl", ".pt")
    what: ClassVar[str] = "stored spectrogram"
    shape: tuple[int, int] | None = None

    def __call__(self, path: Path, *, seed: int | None = None) -> Tensor:
        """Return the matrix, float32 of shape (1, rows, columns); nothing is random.

        Raises:
            RecipeError: If the file is unreadable or does not hold one finite matrix of the right shape.
        """
        with decoding(partial(unreadable, path, kind=self.what)):
            matrix = torch.as_tensor(_load(path), dtype=torch.float32)
        matrix = matrix.reshape(self._checked_shape(path, tuple(matrix.shape)))
        if not torch.isfinite(matrix).all():
            raise unreadable(path, "numbers that are not finite", self.what)
        return matrix.unsqueeze(0)

    @property
    def header(self) -> Header:
        """Reader of the headers of npy files; of other files only whether they are data at all."""
        return Header("stored", _read_header, self._check_header)

    def _check_header(self, path: Path, facts: Sequence[Facts]) -> None:
        for shape in facts[0]:
            self._checked_shape(path, tuple(shape))

    def _checked_shape(self, path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the rows and columns of an array of some shape."""
        sides = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
        if len(sides) != 2 or 0 in sides:
            raise unreadable(path, f"an array of shape {shape}, not a matrix", self.what)
        if self.shape is not None and sides != self.shape:
            raise RecipeError(
                f"The spectrogram in {path} should have the shape of the first, {self.shape}",
                found=str(sides),
                fix="make all of them anew with one length, or leave this one out with `--skip-bad`",
            )
        return sides[0], sides[1]

    def check(self, path: Path) -> Tensor:
        """Decode a file."""
        return self(path)

    def as_in(self, path: Path) -> "StoredSpectrogram":
        """Return a front end that accepts only the shape of a file, so that samples can be stacked."""
        _, rows, columns = self(path).shape
        return StoredSpectrogram((rows, columns))


def _read_header(path: Path) -> Facts:
    """Return the shape of the array in a npy file as the only entry; pickles and pt files have no header."""
    check_file(path, f"{path} should be a readable {StoredSpectrogram.what}", otherwise=OTHERWISE)
    if path.suffix != ".npy":
        return []
    return [[*open_npy(path, partial(unreadable, path, kind=StoredSpectrogram.what)).shape]]


def _load(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.array(open_npy(path, ValueError))
    if path.suffix == ".pkl":
        return np.asarray(load_pickle(path), dtype=np.float32)
    return torch.load(path, map_location="cpu", weights_only=True)
