"""Sounds and pictures of synthetic classes, easy to classify by sound and hard by picture.

The sound of a class is one pitch with its overtones; some clips have a second class of the same loudness, so that sound
alone is ambiguous. The picture of a class is faint stripes of one direction on a faintly tinted ground, under noise.
Joint training therefore relies on sound, while the pictures resolve the ambiguous clips.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe_common.errors import require

Array = NDArray[np.float64]
DIRECTIONS = 3
"""Flipping a picture must not change its class, so stripes have one of three directions up to sign."""


def tone_waveform(
    label: int,
    num_classes: int,
    random: np.random.Generator,
    *,
    rate: int = 8_000,
    seconds: float = 0.5,
    ambiguous: float = 0.2,
) -> Array:
    """Return the sound of a class.

    Args:
        label: Class index.
        num_classes: Number of classes.
        random: Generator of all random numbers.
        rate: Sampling rate in Hz.
        seconds: Shortest length; the longest is 1.2 times that.
        ambiguous: Share of clips with a second class of the same loudness.

    Returns:
        Shape (samples,), in [-1, 1].
    """
    time = np.arange(int(rate * seconds * random.uniform(1.0, 1.2))) / rate
    sound = _tone(time, label, num_classes, random)
    if random.random() < ambiguous:
        sound += _tone(time, (label + int(random.integers(1, num_classes))) % num_classes, num_classes, random)
    sound += 0.2 * random.standard_normal(len(time))
    loudness: Array = sound / np.abs(sound).max() * random.uniform(0.3, 0.9)
    return loudness


def striped_picture(
    label: int,
    num_classes: int,
    random: np.random.Generator,
    *,
    size: int = 64,
    stripes: float = 0.08,
    tint: float = 0.03,
    noise: float = 0.25,
) -> NDArray[np.uint8]:
    """Return a picture of a class.

    Args:
        label: Class index; its remainder by 3 is the direction of the stripes, the rest the tint.
        num_classes: Number of classes.
        random: Generator of all random numbers.
        size: Height and width in pixels.
        stripes: Contrast of the stripes, 0 to 1.
        tint: Strength of the colour, 0 to 1.
        noise: Standard deviation of the noise of a pixel, in units of the brightness range.

    Returns:
        uint8 of shape (size, size, 3).
    """
    rows, columns = np.mgrid[:size, :size] / size
    angle = np.deg2rad(45 * (label % DIRECTIONS)) * random.choice((-1, 1))
    distance = columns * np.cos(angle) + rows * np.sin(angle)
    wave = np.sin(2 * np.pi * (random.uniform(5, 8) * distance + random.random()))
    levels = max(1, (num_classes - 1) // DIRECTIONS)
    warmth = 1 - 2 * (label // DIRECTIONS) / levels
    ground = random.uniform(0.4, 0.6) + warmth * tint * np.array([1, 0, -1])
    shape = ground + stripes * wave[..., None] + noise * random.standard_normal((size, size, 3))
    return (255 * shape.clip(0, 1)).round().astype(np.uint8)


def write_wav(path: Path, samples: Array, rate: int) -> None:
    """Write 16-bit samples in [-1, 1] to a wav file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    require("soundfile").write(path, samples, rate, "PCM_16")


def write_jpg(path: Path, picture: NDArray[np.uint8], quality: int = 90) -> None:
    """Write a picture (H, W, 3) or (H, W) to a jpg file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=quality)


def _tone(time: Array, label: int, num_classes: int, random: np.random.Generator) -> Array:
    """Return a pitch of 180 to 550 Hz by class, +-4 % by clip (less with many classes), with five overtones."""
    interval = 5 / max(5, num_classes - 1)
    pitch = 180 * 1.25 ** (label * interval) * random.uniform(1 - 0.04 * interval, 1 + 0.04 * interval)
    waves = [
        random.uniform(0.5, 1) / overtone * np.sin(2 * np.pi * (overtone * pitch * time + random.random()))
        for overtone in range(1, 7)
    ]
    total: Array = np.sum(waves, axis=0)
    return total
