"""Reader of IEMOCAP features as MMIN packs them: h5 files of one (T, D) dataset per utterance, npy lists of each fold.

Source of the layout: code of Zhao, Li, Jin, "Missing Modality Imagination Network for Emotion Recognition with
Uncertain Missing Modalities", ACL 2021. The code of Guo et al. (NeurIPS 2024) reads the same files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe_common.data.readers.decoding import decoding, open_npy
from recipe_common.data.readers.non_files import file_error
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sources import Source
from recipe_common.data.samples.splits import Split
from recipe_common.errors import RecipeError, require
from recipe_common.files import listing

Array = NDArray[np.float32]
FILES = {"text": "L/bert_large.h5", "audio": "A/comparE.h5", "vision": "V/denseface.h5"}
STATISTICS = "A/comparE_mean_std.h5"
PARTS = {"train": "trn", "val": "val", "test": "tst"}
FOLDERS = (".", "IEMOCAP_features_2021")
OTHERS = {
    "Session1": "the corpus as released",
    "IEMOCAP_full_release*": "the corpus as released",
    "*features_raw_?way.pkl": "one vector per utterance, as GCNet takes them",
    "*features*.pkl": "one vector per utterance, which is read where --data-root is the file itself",
    "features/*-UTT": "one vector per utterance, as GCNet takes them",
    "iemocap_data*.pkl": "the sequences of MulT, where each of four emotions is a yes or no of its own",
    "*.csd": "computational sequences of the CMU SDK",
}
"""Other forms of the corpus, by pattern of their files."""


def find_root(root: Path) -> Path:
    """Return the folder that holds `A`, `V`, `L` and `target`: `root`, or the folder of the unpacked archive in it.

    Raises:
        RecipeError: If neither holds all files, with the names of those that are absent.
    """
    needed = (*FILES.values(), STATISTICS, "target")
    missing = {folder: [name for name in needed if not (root / folder / name).exists()] for folder in FOLDERS}
    for folder in FOLDERS:
        if not missing[folder]:
            return root / folder
    best = min(FOLDERS, key=lambda folder: len(missing[folder]))
    kinds = (kind for pattern, kind in OTHERS.items() if next(root.glob(pattern), None) is not None)
    kind = next(kinds, None)
    hint = "" if kind is None else f"; that is {kind}, and these features are another download"
    raise RecipeError(
        f"{root} should hold {', '.join(needed)}",
        found=(listing(root) if len(missing[best]) == len(needed) else f"all but {', '.join(missing[best])}") + hint,
        fix="unpack the features of MMIN there, or point --data-root to them",
    )


def read_split(root: Path, fold: int, classes: Sequence[str]) -> Split:
    """Read the names and labels of the three parts of a fold.

    Args:
        root: Folder of the features, as `find_root` returns it.
        fold: Number of the fold, the name of its folder in `target`.
        classes: Class names in the order of the columns of the one-hot labels.

    Raises:
        RecipeError: For a missing or unreadable file, labels out of range, or an utterance that is listed twice.
    """
    folder = root / "target" / str(fold)
    if not folder.is_dir():
        present = sorted((path.name for path in folder.parent.iterdir()), key=lambda name: (len(name), name))
        raise RecipeError(
            f"{folder} should hold the lists of fold {fold}", found=str(present), fix="choose another --fold"
        )
    split = Split(**{part: _read_part(folder, short, classes) for part, short in PARTS.items()})
    _check_once([row.name for row in (*split.train, *split.val, *split.test)], folder)
    return split


def _read_part(folder: Path, part: str, classes: Sequence[str]) -> tuple[Row, ...]:
    listed = folder / f"{part}_int2name.npy"
    with decoding(partial(_unreadable, listed)):
        names = [_text(value) for value in _load(listed).reshape(-1)]
    path = folder / f"{part}_label.npy"
    labels = _class_indices(_load(path), len(classes), path)
    if len(names) != len(labels):
        raise RecipeError(
            f"{listed} should have as many names as {path.name} has labels",
            found=f"{len(names):,} and {len(labels):,}",
            fix="restore both files",
        )
    return tuple(Row(name, classes[label]) for name, label in zip(names, labels, strict=True))


def _load(path: Path) -> NDArray[Any]:
    return np.array(open_npy(path, partial(_unreadable, path)))


def _unreadable(path: Path, found: str) -> RecipeError:
    return file_error(path, f"{path} should be a readable npy file", found=found, fix="restore the file")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _class_indices(labels: NDArray[Any], num_classes: int, path: Path) -> list[int]:
    """Return the class indices of one-hot labels (N, C), or of indices (N,)."""
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise RecipeError(
                f"{path} should hold one-hot labels", found="rows without a single 1", fix="restore the file"
            )
        labels = labels.argmax(axis=1)
    elif labels.ndim != 1 or not np.isin(labels, range(num_classes)).all():
        raise RecipeError(
            f"{path} should hold one-hot labels (N, {num_classes}) or class indices below {num_classes}",
            found=f"{labels.dtype} of shape {labels.shape}",
            fix="restore the file",
        )
    return [int(label) for label in labels]


def _check_once(names: Sequence[str], folder: Path) -> None:
    (name, times), *_ = Counter(names).most_common(1) or [("", 0)]
    if times > 1:
        raise RecipeError(f"{folder} should list every utterance once", found=f"{name} again", fix="restore the lists")


class FeatureFile:
    """An h5 file with a dataset (T, D) for each utterance; they are read one by one.

    Args:
        path: Path of the file.

    Raises:
        RecipeError: If the file is truncated or no h5 file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, Any] | None = None
        self.size = 0
        with decoding(self._broken):
            self.names = frozenset(name for name in self._file() if isinstance(name, str))  # damaged ones are bytes
        if not self.names:
            raise RecipeError(f"{path} should hold a dataset for each utterance", found="none", fix="download it again")
        first = min(self.names)
        with decoding(partial(self._bad, first)):
            shape: tuple[int, ...] = getattr(self._file()[first], "shape", ())
        if len(shape) != 2:
            raise self._bad(first, f"shape {shape}" if shape else "a group")
        self.size = shape[1]

    def find(self, row: Row) -> str | None:
        """Return the name of the utterance of a row, or None if the file lacks it."""
        return row.name if row.name in self.names else None

    def read(self, name: str) -> Array:
        """Return the features of an utterance, float32 (T, D).

        Raises:
            RecipeError: If they are unreadable, not finite, or of another shape than (T, D).
        """
        with decoding(partial(self._bad, name)):
            features = np.asarray(self._file()[name][()], dtype=np.float32)
        if features.ndim != 2 or features.shape[1] != self.size:
            raise self._bad(name, f"shape {features.shape} instead of (T, {self.size})")
        if not np.isfinite(features).all():
            raise self._bad(name, "values that are not finite")
        return features

    def _file(self) -> Any:
        # A handle must not be shared with the workers that a process forks.
        if self._open is None or self._open[0] != os.getpid():
            with decoding(self._broken):
                self._open = os.getpid(), require("h5py").File(self.path, "r")
        return self._open[1]

    def _broken(self, found: str) -> RecipeError:
        should = f"{self.path} should be a whole h5 file"
        return file_error(self.path, should, found=found, fix="download it again")

    def _bad(self, name: str, found: str) -> RecipeError:
        return RecipeError(
            f"{self.path} should hold finite features (T, {self.size or 'D'}) of {name}",
            found=found,
            fix="download the file again, or leave such utterances out with --skip-bad",
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def read_statistics(path: Path, fold: int) -> tuple[Array, Array]:
    """Return mean and standard deviation (D,) of the training frames of a fold; a deviation of 0 becomes 1.

    Raises:
        RecipeError: If the file is unreadable or lacks the fold.
    """

    def error(found: str) -> RecipeError:
        should = f"{path} should hold `{fold}/mean` and `{fold}/std`"
        return file_error(path, should, found=found, fix="download the file again")

    with decoding(error), require("h5py").File(path, "r") as file:
        mean, deviation = (np.asarray(file[str(fold)][name][()], np.float32) for name in ("mean", "std"))
    return mean, np.where(deviation == 0, np.float32(1), deviation)


def sources(root: Path, fold: int, lengths: dict[str, int]) -> tuple[Source, ...]:
    """Return the sources of text, audio and vision; audio is normalised with the statistics of the fold.

    Args:
        root: Folder of the features, as `find_root` returns it.
        fold: Number of the fold.
        lengths: Time steps by modality, to which utterances are cut, or padded with zeros at their end.

    Raises:
        RecipeError: If a file is unreadable, or the statistics belong to other features.
    """
    made = []
    for modality, name in FILES.items():
        file = FeatureFile(root / name)
        statistics = read_statistics(root / STATISTICS, fold) if modality == "audio" else None
        if statistics is not None and any(values.shape != (file.size,) for values in statistics):
            raise RecipeError(
                f"{root / STATISTICS} should hold statistics of {file.size} features, as many as in {file.path}",
                found=str(statistics[0].shape[-1]),
                fix="download both files again",
            )
        read = partial(_read, file, lengths[modality], statistics)
        made.append(Source(modality, f"{modality} features", str(file.path), file.find, read, file.read))
    return tuple(made)


def _read(
    file: FeatureFile, length: int, statistics: tuple[Array, Array] | None, name: str, *, seed: int | None
) -> Tensor:
    features = file.read(name)[:length]
    if statistics is not None:
        features = (features - statistics[0]) / statistics[1]
    padded = np.zeros((length, file.size), np.float32)
    padded[: len(features)] = features
    return torch.from_numpy(padded)
