"""Synthetic clips of a sound and some frames each, as wav files and folders of jpg files."""

from pathlib import Path
from typing import Any

import attrs
import numpy as np

from recipe_common.data.synthetic.media import striped_picture, tone_waveform, write_jpg, write_wav


@attrs.frozen
class SyntheticClips:
    """Settings of a synthetic set of clips; a clip is a function of its position, its label and the seed.

    Args:
        names: Clip names.
        labels: Class index of each clip.
        num_classes: Number of classes.
        seed: Seed of all random numbers.
        seconds: Shortest length of the sound.
        rate: Sampling rate in Hz.
        frames: Frames per clip.
        size: Height and width of the frames in pixels.
        version: Version of the files, raised when they change for another reason.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    num_classes: int
    seed: int = 0
    seconds: float = 0.4
    rate: int = 8_000
    frames: int = 2
    size: int = 64
    version: int = 2

    def write(self, audio_folder: Path, frames_folder: Path) -> None:
        """Write `<name>.wav` and `<name>/00000.jpg, 00030.jpg, ...` (as from a video of 30 frames per second)."""
        for index, (name, label) in enumerate(zip(self.names, self.labels, strict=True)):
            random: Any = np.random.default_rng((self.seed, index))
            sound = tone_waveform(label, self.num_classes, random, rate=self.rate, seconds=self.seconds)
            write_wav(audio_folder / f"{name}.wav", sound, self.rate)
            for number in range(self.frames):
                picture = striped_picture(label, self.num_classes, random, size=self.size)
                write_jpg(frames_folder / name / f"{30 * number:05d}.jpg", picture, quality=75)
