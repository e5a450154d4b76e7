"""Synthetic sets of clips with events in the formats of AVE: as files, and as features by segment.

Sound is easy except for some clips, pictures are hard, and the rest of a clip holds no sign of the class of its event.
"""

from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from recipe_common.data.datasets.ave import segment_features as files
from recipe_common.data.datasets.ave.clips import AUDIO, LISTS, frames_name
from recipe_common.data.samples.lists import Row
from recipe_common.data.synthetic.media import striped_picture, tone_waveform, write_jpg, write_wav
from recipe_common.errors import require

PARTS = ("train", "val", "test")


@attrs.frozen
class SyntheticEvents:
    """Settings of a synthetic set of clips; a clip is a function of its place in its list and the seed.

    Args:
        classes: Class names.
        clips: Clips per class in train, val and test.
        seed: Seed of all random numbers.
        rate: Sampling rate in Hz.
        frames: Frames per event.
        size: Height and width of the frames in pixels.
        version: Version of the files, raised when they change for another reason.
    """

    classes: tuple[str, ...]
    clips: tuple[int, int, int] = (8, 2, 2)
    seed: int = 0
    rate: int = 4_000
    frames: int = 2
    size: int = 48
    version: int = 1

    def rows(self, part: int) -> tuple[Row, ...]:
        """List the clips of part 0, 1 or 2; in every second clip of a class the event is the second of two seconds."""
        return tuple(
            Row(f"{PARTS[part]}{label:02d}{number:02d}", name, ("1", "2") if number % 2 else ("0", "1"))
            for label, name in enumerate(self.classes)
            for number in range(self.clips[part])
        )

    def write(self, root: Path) -> None:
        """Write the three lists, `Audios/<id>.wav` and the frames."""
        for part, name in enumerate(LISTS):
            rows = self.rows(part)
            lines = [f"{row.label}&{row.name}&good&{'&'.join(row.extra)}\n" for row in rows]
            (root / name).write_text("".join(lines), newline="")
            for index, row in enumerate(rows):
                self._write_clip(root, row, np.random.default_rng((self.seed, part, index)))

    def _write_clip(self, root: Path, row: Row, random: np.random.Generator) -> None:
        label, count = self.classes.index(row.label), len(self.classes)
        sound = tone_waveform(label, count, random, rate=self.rate, seconds=1.0, ambiguous=0.4)[: self.rate]
        before = 0.3 * random.standard_normal(int(row.extra[0]) * self.rate)
        write_wav(root / AUDIO / f"{row.name}.wav", np.concatenate([before.clip(-1, 1), sound]), self.rate)
        for number in range(self.frames):
            picture = striped_picture(label, count, random, size=self.size, stripes=0.2, tint=0.15, noise=0.15)
            write_jpg(root / frames_name(1) / row.name / f"{30 * number:05d}.jpg", picture, quality=75)


@attrs.frozen
class SyntheticSegmentFeatures:
    """Settings of a synthetic set of features by segment.

    In a segment of the event, the sound and one cell of the feature map hold the pattern of the class; in a segment of
    background at most one of them does. Patterns are faint in the feature map.

    Args:
        num_classes: Classes of events, without background.
        clips: Clips per class in train, val and test.
        seed: Seed of all random numbers.
        segments: Segments per clip.
        audio_size: Size of an audio feature.
        map_shape: Height, width and size of a feature map.
        noise: Standard deviation of the noise of audio and visual features; patterns have 1.
        version: Version of the files, raised when they change for another reason.
    """

    num_classes: int = 28
    clips: tuple[int, int, int] = (8, 2, 2)
    seed: int = 0
    segments: int = 10
    audio_size: int = 64
    map_shape: tuple[int, int, int] = (3, 3, 16)
    noise: tuple[float, float] = (0.5, 0.7)
    version: int = 1

    def write(self, root: Path) -> None:
        """Write the six files."""
        random = np.random.default_rng(self.seed)
        sounds, pictures = (random.standard_normal((self.num_classes, n)) for n in (self.audio_size, self.map_shape[2]))
        labels = np.tile(np.arange(self.num_classes), sum(self.clips))
        clips = [self._clip(sounds[label], pictures[label], label, random) for label in labels]
        audio, visual, targets = (np.stack(values) for values in zip(*clips, strict=True))
        _write(root / files.AUDIO, files.FEATURES_KEY, audio.astype(np.float32))
        _write(root / files.VISUAL, files.FEATURES_KEY, visual.astype(np.float32))
        _write(root / files.LABELS[0], files.FEATURES_KEY, np.eye(self.num_classes + 1)[targets])
        ends = np.cumsum(self.clips) * self.num_classes
        for name, order in zip(files.ORDERS.values(), np.split(np.arange(len(labels)), ends[:2]), strict=True):
            _write(root / name, files.ORDER_KEY, order)

    def _clip(
        self, sound: NDArray[np.float64], picture: NDArray[np.float64], label: int, random: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        start = int(random.integers(0, self.segments - 4))
        event = np.zeros(self.segments, dtype=bool)
        event[start : int(random.integers(start + 4, self.segments + 1))] = True
        background = random.integers(0, 3, self.segments)  # nothing, sound alone, picture alone
        audio = self.noise[0] * random.standard_normal((self.segments, self.audio_size))
        visual = self.noise[1] * random.standard_normal((self.segments, *self.map_shape))
        audio[event | (background == 1)] += sound
        row, column = (int(random.integers(side)) for side in self.map_shape[:2])
        visual[event | (background == 2), row, column] += picture
        return audio, visual.clip(min=0), np.where(event, label, self.num_classes)


def _write(path: Path, key: str, values: NDArray[Any]) -> None:
    with require("h5py").File(path, "w") as file:
        file[key] = values
