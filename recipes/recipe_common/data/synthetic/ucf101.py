"""A synthetic set in the format of UCF-101: six kinds of motion, easy to classify by flow and hard by picture.

The kinds stay the same when a clip is mirrored. In some clips the flow shows no motion; the pictures, faint stripes
under noise, resolve these clips.
"""

from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from recipe_common.data.prepare.optical_flow import flow_to_grey
from recipe_common.data.synthetic.media import striped_picture, write_jpg

MOTIONS = ("Rising", "Falling", "Sideways", "Growing", "Shrinking", "Turning")
TEST_GROUPS = range(1, 8)
"""Groups of clips for testing, as in the first official split."""


@attrs.frozen
class SyntheticMotion:
    """Settings of the synthetic set; a clip is a function of its name and the seed.

    Args:
        groups: Groups of clips per class; those in `TEST_GROUPS` are for testing.
        clips: Clips per group.
        frames: Frames, and flows, per clip.
        size: Height and width in pixels.
        still: Share of clips whose flow shows no motion.
        seed: Seed of all random numbers.
        version: Version of the files, raised when they change for another reason.
    """

    groups: int = 25
    clips: int = 3
    frames: int = 2
    size: int = 48
    still: float = 0.2
    seed: int = 0
    version: int = 1

    def write(self, root: Path) -> None:
        """Write `jpegs_256`, `tvl1_flow/u`, `tvl1_flow/v` and the lists of fold 1 in `ucfTrainTestlist`."""
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(MOTIONS):
            for group in range(1, self.groups + 1):
                part = "test" if group in TEST_GROUPS else "train"
                for clip in range(1, self.clips + 1):
                    stem = f"v_{name}_g{group:02d}_c{clip:02d}"
                    self._write_clip(root, stem, label, np.random.default_rng((self.seed, label, group, clip)))
                    lists[part].append(f"{name}/{stem}.avi" + (f" {label + 1}" if part == "train" else ""))
        folder = root / "ucfTrainTestlist"
        folder.mkdir()
        lines = {"classInd": [f"{index} {name}" for index, name in enumerate(MOTIONS, 1)]}
        lines |= {f"{part}list01": rows for part, rows in lists.items()}
        for name, rows in lines.items():
            (folder / f"{name}.txt").write_text("\n".join(rows) + "\n", newline="")

    def _write_clip(self, root: Path, stem: str, label: int, random: np.random.Generator) -> None:
        speed = 0.0 if random.random() < self.still else random.uniform(3, 6)
        side = random.choice((-1, 1))
        for number in range(1, self.frames + 1):
            picture = striped_picture(label, len(MOTIONS), random, size=self.size)
            write_jpg(root / "jpegs_256" / stem / f"frame{number:06d}.jpg", picture)
            flow = motion(label, self.size, side) * speed + random.normal(0, 3, (self.size, self.size, 2))
            for part, grey in zip("uv", np.moveaxis(flow_to_grey(flow.astype(np.float32)), 2, 0), strict=True):
                write_jpg(root / "tvl1_flow" / part / stem / f"frame{number:06d}.jpg", grey)


def motion(label: int, size: int, side: int) -> NDArray[np.float64]:
    """Return the motion of a class of `MOTIONS`, to the right and down, of shape (size, size, 2) and up to 1 or so.

    Args:
        label: Class index.
        size: Height and width in pixels.
        side: 1 or -1: to the right or left, clockwise or not, for classes with both directions.
    """
    down, right = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    zero = np.zeros_like(right)
    parts = {
        "Rising": (zero, zero - 1),
        "Falling": (zero, zero + 1),
        "Sideways": (zero + side, zero),
        "Growing": (right, down),
        "Shrinking": (-right, -down),
        "Turning": (-side * down, side * right),
    }
    return np.stack(parts[MOTIONS[label]], axis=2)
