"""A small generated set of audio-visual clips, easy to hear and hard to see, stored as real wav and jpg files.

A class sounds like one pitch with its overtones; in some clips a second class is heard as loudly, so that sound alone
cannot tell. A class looks like faint stripes of one direction on a faintly tinted ground, under noise. Training both
together therefore leans on sound, while the pictures hold what the ambiguous clips lack.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.data.layout import Layout
from common.errors import require

Array = NDArray[np.float64]
VERSION = 1
"""To be raised when the files change for another reason than the settings."""


@attrs.frozen
class Generated:
    """What a generated set depends on.

    Args:
        names: Clip names; a clip is a function of its name's position here, its label and the seed.
        labels: Class index of each clip.
        classes: Number of classes, at most 6.
        seed: Of everything random.
        ambiguous: Share of clips in which a second class is heard as loudly.
        stripes: Contrast of the stripes, 0 to 1.
        tint: Strength of the colour, 0 to 1.
        noise: Standard deviation of the noise of a pixel, in units of the brightness range.
        size: Height and width of the frames in pixels.
        frames: Frames per clip.
        rate: Sampling rate of the wav files in Hz.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: int
    seed: int = 0
    ambiguous: float = 0.2
    stripes: float = 0.08
    tint: float = 0.03
    noise: float = 0.25
    size: int = 64
    frames: int = 3
    rate: int = 16_000

    @property
    def digest(self) -> str:
        """Name of the folder of a set: other settings, another folder."""
        return hashlib.sha256(f"{VERSION} {self!r}".encode()).hexdigest()[:12]


def cached(root: Path, generated: Generated, lists: Mapping[str, str], layout: Layout) -> Path:
    """Return the folder of a generated set under `root`, making it at the first call.

    The set appears in one step, by renaming a finished temporary folder, so that a kill leaves nothing half-made.

    Args:
        root: Where generated sets are kept.
        generated: The set.
        lists: Text of each list, by file name.
        layout: Names of the folders within the set.
    """
    folder = root / generated.digest
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
    for name, text in lists.items():
        (partial / name).write_text(text, newline="")
    write_clips(generated, partial / layout.audio[0], partial / layout.frames)
    try:
        os.rename(partial, folder)
    except OSError:  # another process was faster
        shutil.rmtree(partial)
    return folder


def write_clips(generated: Generated, audio_folder: Path, frames_folder: Path) -> None:
    """Write `<name>.wav` and `<name>/00000.jpg, 00030.jpg, ...` (as from a video of 30 frames per second)."""
    soundfile = require("soundfile")
    audio_folder.mkdir(parents=True)
    for index, (name, label) in enumerate(zip(generated.names, generated.labels, strict=True)):
        random = np.random.default_rng((generated.seed, index))
        soundfile.write(audio_folder / f"{name}.wav", waveform(generated, label, random), generated.rate, "PCM_16")
        (frames_folder / name).mkdir(parents=True)
        for number in range(generated.frames):
            image = Image.fromarray(picture(generated, label, random))
            image.save(frames_folder / name / f"{30 * number:05d}.jpg", quality=90)


def waveform(generated: Generated, label: int, random: np.random.Generator) -> Array:
    """Return 1.0 to 1.2 s of sound of shape (samples,), in [-1, 1]."""
    time = np.arange(int(generated.rate * random.uniform(1.0, 1.2))) / generated.rate
    sound = _tone(time, label, random)
    if random.random() < generated.ambiguous:
        sound += _tone(time, _other(label, generated.classes, random), random)
    sound += 0.2 * random.standard_normal(len(time))
    loudness: Array = sound / np.abs(sound).max() * random.uniform(0.3, 0.9)
    return loudness


def picture(generated: Generated, label: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return one frame, uint8 of shape (size, size, 3)."""
    rows, columns = np.mgrid[: generated.size, : generated.size] / generated.size
    angle = np.deg2rad(45 * (label % 3)) * random.choice((-1, 1))  # flipping a picture must not change its class
    distance = columns * np.cos(angle) + rows * np.sin(angle)
    wave = np.sin(2 * np.pi * (random.uniform(5, 8) * distance + random.random()))
    warmth = 1 if label < 3 else -1
    ground = random.uniform(0.4, 0.6) + warmth * generated.tint * np.array([1, 0, -1])
    noise = generated.noise * random.standard_normal((generated.size, generated.size, 3))
    shape = ground + generated.stripes * wave[..., None] + noise
    return (255 * shape.clip(0, 1)).round().astype(np.uint8)


def _tone(time: Array, label: int, random: np.random.Generator) -> Array:
    """A pitch of 180 to 550 Hz by class, +-4 % by clip, with five overtones of random strength and phase."""
    pitch = 180 * 1.25**label * random.uniform(0.96, 1.04)
    overtones: Sequence[int] = range(1, 7)
    waves = [
        random.uniform(0.5, 1) / overtone * np.sin(2 * np.pi * (overtone * pitch * time + random.random()))
        for overtone in overtones
    ]
    total: Array = np.sum(waves, axis=0)
    return total


def _other(label: int, classes: int, random: np.random.Generator) -> int:
    return (label + int(random.integers(1, classes))) % classes
