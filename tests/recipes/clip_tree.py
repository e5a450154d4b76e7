"""Tiny trees of clips cut from YouTube videos, for the tests of reading them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from recipe_common.recipe import Data, Recipe
from recipe_common.training.settings import resolve

from .cremad_tree import write_frame, write_wav


def video_id(number: int) -> str:
    """11 characters, with the `_` and `-` that real ones have."""
    return f"a_{number:04d}-_b1c"


def write_sound(path: Path, seed: int = 0, seconds: float = 0.1) -> None:
    write_wav(path, np.random.default_rng(seed).uniform(-0.5, 0.5, int(16_000 * seconds)))


def write_frames(folder: Path, count: int = 3, pattern: str = "frame_{:05d}.jpg") -> None:
    for number in range(1, count + 1):
        write_frame(folder / pattern.format(number), brightness=20 * number)


def write_stored(path: Path, shape: tuple[int, int] = (1024, 128), value: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.full(shape, value, np.float32))


def load(recipe: Recipe, root: Path | None, **changes: Any) -> Data:
    """Read the data as the command line does; on small inputs unless `changes` say otherwise."""
    return recipe.load(resolve({"data_root": root, **changes}, recipe))


def names_of(dataset: Any) -> list[str]:
    return [sample.name for sample in dataset.samples]


def labels_of(dataset: Any) -> list[int]:
    return [sample.label for sample in dataset.samples]


def write_lines(path: Path, lines: Iterable[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + end for line in lines), newline="")
