"""Tiny UCF-101 trees on disk, for the tests of reading them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
GROUPS = range(1, 13)
TEST_GROUPS = range(1, 4)


def names(groups: Iterable[int] = GROUPS, clips: int = 2) -> list[str]:
    return [
        f"v_{label}_g{group:02d}_c{clip:02d}" for label in CLASSES for group in groups for clip in range(1, clips + 1)
    ]


def write_picture(path: Path, pixels: NDArray[np.uint8] | None = None, brightness: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10), brightness, np.uint8) if pixels is None else pixels).save(path, quality=100)


def write_clip(
    root: Path,
    name: str,
    *,
    frames: int = 4,
    rgb: str = "jpegs_256",
    flow: str = "tvl1_flow",
    pattern: str = "frame{:06d}",
) -> None:
    for number in range(1, frames + 1):
        file = f"{pattern.format(number)}.jpg"
        write_picture(root / rgb / name / file, brightness=20 * number)
        if number < frames:
            write_picture(root / flow / "u" / name / file, brightness=100 + number)
            write_picture(root / flow / "v" / name / file, brightness=150 + number)


def row(name: str, index: bool) -> str:
    label = name.split("_")[1]
    return f"{label}/{name}.avi" + (f" {CLASSES.index(label) + 1}" if index else "")


def write_lists(root: Path, folder: str = "ucfTrainTestlist", fold: int = 1, newline: str = "\n") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    train = [group for group in GROUPS if group not in TEST_GROUPS]
    files = {
        "classInd": [f"{index} {name}" for index, name in enumerate(CLASSES, 1)],
        f"trainlist{fold:02d}": [row(name, index=True) for name in names(train)],
        f"testlist{fold:02d}": [row(name, index=False) for name in names(TEST_GROUPS)],
    }
    for name, lines in files.items():
        (root / folder / f"{name}.txt").write_text(newline.join(lines) + newline, newline="")
