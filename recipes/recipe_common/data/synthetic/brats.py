"""A synthetic set in the format of BraTS: brains with a tumour, whose parts show in different modalities."""

from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from recipe_common.data.datasets.brats import SUFFIX
from recipe_common.data.prepare.nifti import normalised, write_case

CONTRAST = {
    "flair": (0.3, 1.6, 0.9),
    "t1ce": (-0.9, 0.0, 1.8),
    "t1": (-0.7, -0.3, -0.1),
    "t2": (1.3, 0.9, 0.7),
}
"""Brightness of core without enhancement, oedema and enhancing rim over that of the brain, whose mean is 5."""
CORE, OEDEMA, RIM = 1, 2, 3


@attrs.frozen
class SyntheticBrains:
    """Settings of a synthetic set of volumes; a case is a function of its number and the seed.

    Args:
        cases: Names of the files by folder.
        seed: Seed of all random numbers.
        side: Height and width in voxels.
        depth: Number of slices.
        noise: Standard deviation of the noise of a voxel.
        version: Version of the files, raised when they change for another reason.
    """

    cases: tuple[tuple[str, tuple[str, ...]], ...]
    seed: int = 0
    side: int = 48
    depth: int = 20
    noise: float = 0.6
    version: int = 1

    def write(self, root: Path) -> None:
        """Write `<folder>/<name>` with `image` (4, side, side, depth), in the order of CONTRAST, and `label`."""
        files = [root / folder / name for folder, names in self.cases for name in names]
        for number, path in enumerate(files):
            write_case(path, *self.volume(number))

    def volume(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return image (4, side, side, depth), normalised inside the brain, and label (side, side, depth)."""
        random = np.random.default_rng((self.seed, number))
        label, brain = self._label(random)
        image = np.zeros((len(CONTRAST), *label.shape), np.float32)
        for volume, contrast in zip(image, CONTRAST.values(), strict=True):
            brightness = 5 + np.array([0.0, *contrast])[label] + self.noise * random.standard_normal(label.shape)
            volume[:] = np.where(brain, brightness.clip(0.5), 0)
        # Steps of 1 / 8 are lost in the noise, and pack well.
        return np.round(normalised(image) * 8) / np.float32(8), label

    def _label(self, random: Any) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        middle = np.array([self.side / 2, self.side / 2, self.depth / 2])
        inside = 0.42 * np.array([self.side, 0.8 * self.side, self.depth])
        brain = self._distance(middle, inside) < 1
        radii = inside * random.uniform(0.35, 0.5)
        centre = middle + inside * random.uniform(-0.4, 0.4, 3)
        distance = self._distance(centre, radii)
        core = random.uniform(0.55, 0.7)
        label = np.select([distance < core / 2, distance < core, distance < 1], [CORE, RIM, OEDEMA], 0)
        return np.where(brain, label, 0).astype(np.uint8), brain

    def _distance(self, centre: NDArray[Any], radii: NDArray[Any]) -> NDArray[Any]:
        """Return the distance of each voxel from the centre of an ellipsoid, 1 on its surface."""
        grid = np.indices((self.side, self.side, self.depth)) + 0.5
        scaled = (grid - centre[:, None, None, None]) / radii[:, None, None, None]
        distance: NDArray[Any] = np.sqrt((scaled**2).sum(axis=0))
        return distance


def _names(first: int, count: int) -> tuple[str, ...]:
    return tuple(f"BraTS2021_{number:05d}{SUFFIX}" for number in range(first, first + count))


SYNTHETIC = SyntheticBrains((("train", _names(0, 40)), ("valid", _names(40, 8)), ("test", _names(48, 8))))
