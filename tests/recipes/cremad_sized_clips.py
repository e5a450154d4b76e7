"""Synthetic clips of the length and frame size of CREMA-D, for measuring how fast they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipe_common.data.synthetic.media import write_jpg, write_wav
from recipe_common.recipe import Data, Recipe

from .call import settings_of


def write_clips(root: Path, count: int = 64, *, size: tuple[int, int] = (360, 480), frames: int = 3) -> Path:
    """Write clips of 2.5 s of 16-bit sound at 16 kHz and frames of a height and width, as smooth as photographs.

    `count` of them are for training, 6 for validation and 6 for testing.
    """
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]] / 20
    labels = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
    lines = []
    for index in range(count + 12):
        label = labels[index % len(labels)]
        name = f"{1001 + index}_IEO_{label}_XX"
        lines.append(f"{name},{label}\n")
        write_wav(root / "AudioWAV" / f"{name}.wav", random.uniform(-0.5, 0.5, 40_000), 16_000)
        for number in range(frames):
            shift = random.uniform(0, 6, (2, 3))
            waves = np.sin(rows[..., None] + shift[0]) + np.cos(columns[..., None] + shift[1])
            picture = 127 + 50 * waves + random.normal(0, 8, (*size, 3))
            path = root / "Image-01-FPS" / name / f"{30 * number:05d}.jpg"
            write_jpg(path, picture.clip(0, 255).astype(np.uint8), quality=85)
    parts = {"train": lines[: count + 6], "my_train": lines[:count], "val": lines[count:-6], "test": lines[-6:]}
    for part, rows_of_part in parts.items():
        (root / f"{part}.csv").write_text("".join(rows_of_part))
    return root


def open_data(recipe: Recipe, *flags: str) -> Data:
    """Read data as the command line does."""
    return recipe.load(settings_of(recipe, *flags))
