"""A set in the format of AV-MNIST: real handwritten digits, and synthetic spectrograms of spoken digits."""

from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe_common.errors import require

Array = NDArray[np.float64]
NUM_DIGITS = 10
SOUND_GRID = 10
"""Height and width of a spectrogram before it is enlarged; a digit has 8 x 8. Noise is added on these grids."""
CONTRAST = 3
"""Standard deviations of a spectrogram between grey and white, or black; louder or quieter values are clipped."""


@attrs.frozen
class SyntheticDigits:
    """Settings of the synthetic set.

    Args:
        image_noise: Standard deviation of the noise of a handwritten digit, in units of the brightness range.
        audio_noise: Standard deviation of the noise of a spectrogram, in units of that of the clean one.
        image_size: Height and width in pixels.
        audio_size: Number of frequencies, and of steps in time.
        num_test: Samples in the test files; the others are in the training files.
        seed: Seed of all random numbers.
        version: Version of the files, raised when they change for another reason.
    """

    image_noise: float = 0.35
    audio_noise: float = 2.0
    image_size: int = 28
    audio_size: int = 28
    num_test: int = 360
    seed: int = 0
    version: int = 1

    def write(self, folder: Path) -> None:
        """Write `image/` and `audio/` with `train_data.npy` and `test_data.npy`, and the two files of labels.

        Images have shape (N, image_size ** 2), spectrograms (N, audio_size, audio_size); all values are uint8.
        """
        bunch = require("sklearn.datasets").load_digits()
        random = np.random.default_rng(self.seed)
        order = random.permutation(len(bunch.target))
        labels = bunch.target[order].astype(np.int64)
        images = self._images(bunch.images[order] / 16, random)
        sounds = self._sounds(labels, random)
        parts = {"train": slice(self.num_test, None), "test": slice(0, self.num_test)}
        for name in ("image", "audio"):
            (folder / name).mkdir()
        for part, rows in parts.items():
            np.save(folder / "image" / f"{part}_data.npy", images[rows])
            np.save(folder / "audio" / f"{part}_data.npy", sounds[rows])
            np.save(folder / f"{part}_labels.npy", labels[rows])

    def _images(self, digits: Array, random: np.random.Generator) -> NDArray[np.uint8]:
        noisy = digits + self.image_noise * random.standard_normal(digits.shape)
        return enlarged(noisy, self.image_size).reshape(len(digits), -1)

    def _sounds(self, labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.uint8]:
        prototypes = np.stack([formants(SOUND_GRID, random) for _ in range(NUM_DIGITS)])
        sounds = prototypes[labels] + self.audio_noise * random.standard_normal((len(labels), *prototypes.shape[1:]))
        return enlarged(0.5 + sounds / (2 * CONTRAST * np.hypot(1, self.audio_noise)), self.audio_size)


def enlarged(pictures: Array, size: int) -> NDArray[np.uint8]:
    """Return pictures (N, H, W) of brightness 0 to 1, smoothly enlarged to uint8 of shape (N, size, size)."""
    levels = (255 * pictures.clip(0, 1)).round().astype(np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR)) for one in levels]
    )


def formants(size: int, random: np.random.Generator, count: int = 3) -> Array:
    """Return the spectrogram of a synthetic word: bands of energy whose pitch glides.

    Returns:
        Shape (size, size), frequency by time, with mean 0 and standard deviation 1.
    """
    frequency, time = np.mgrid[:size, :size] / size
    energy = np.zeros((size, size))
    for _ in range(count):
        start, end = random.uniform(0.1, 0.9, 2)
        centre, length = random.uniform(0.2, 0.8), random.uniform(0.2, 0.4)
        pitch = start + (end - start) * time
        energy += np.exp(-(((frequency - pitch) / 0.06) ** 2)) * np.exp(-(((time - centre) / length) ** 2))
    standard: Array = (energy - energy.mean()) / energy.std()
    return standard
