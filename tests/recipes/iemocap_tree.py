"""Small trees in the layout of MMIN, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SIZES = {"L/bert_large.h5": 6, "A/comparE.h5": 5, "V/denseface.h5": 4}


def names(count: int, first: int = 0) -> list[str]:
    return [f"Ses01F_impro01_F{number:03d}" for number in range(first, first + count)]


def write_h5(path: Path, datasets: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values


def write_features(root: Path, utterances: Sequence[str], steps: int = 3, fold: int = 1) -> None:
    """Three h5 files of the given number of time steps, and statistics of mean 1, deviation 2 (0 for feature 0)."""
    for number, (name, size) in enumerate(SIZES.items()):
        random = np.random.default_rng(number)
        write_h5(root / name, {each: random.standard_normal((steps, size)) for each in utterances})
    deviation = np.array([0, *[2.0] * (SIZES["A/comparE.h5"] - 1)])
    statistics = {f"{fold}/mean": np.ones(SIZES["A/comparE.h5"]), f"{fold}/std": deviation}
    write_h5(root / "A" / "comparE_mean_std.h5", statistics)


def write_list(root: Path, part: str, utterances: Sequence[str], labels: Any, fold: int = 1) -> None:
    """Names as bytes (N, 1) and one-hot labels (N, 4), as MMIN has them."""
    folder = root / "target" / str(fold)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{part}_int2name.npy", np.array(utterances, "S")[:, None])
    np.save(folder / f"{part}_label.npy", np.eye(4)[np.asarray(labels)])


def write_tree(root: Path, train: int = 8, val: int = 4, test: int = 4) -> list[str]:
    """A whole tree whose labels go round; returns all names."""
    utterances = names(train + val + test)
    write_features(root, utterances)
    start = 0
    for part, count in (("trn", train), ("val", val), ("tst", test)):
        write_list(root, part, utterances[start : start + count], [index % 4 for index in range(count)])
        start += count
    return utterances
