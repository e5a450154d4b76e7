"""Tiny CREMA-D trees on disk, for the tests of reading them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

LABELS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")


def names(actors: int = 4, sentences: Sequence[str] = ("IEO", "TIE")) -> list[str]:
    return [
        f"{1001 + actor}_{sentence}_{label}_XX" for actor in range(actors) for sentence in sentences for label in LABELS
    ]


def label_of(name: str) -> str:
    return name.split("_")[2]


def write_wav(path: Path, samples: NDArray[np.float64] | None = None, rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(160, 0.1) if samples is None else samples, rate, "PCM_16")


def write_frame(path: Path, brightness: int = 100, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (brightness, brightness, brightness)).save(path)


def write_clips(root: Path, clips: Iterable[str], *, audio: str = "AudioWAV", frame: str = "00000.jpg") -> None:
    for name in clips:
        write_wav(root / audio / f"{name}.wav")
        write_frame(root / "Image-01-FPS" / name / frame)


def write_list(path: Path, clips: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name},{label_of(name)}\n" for name in clips))
