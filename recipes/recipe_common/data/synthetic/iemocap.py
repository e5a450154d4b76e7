"""A synthetic set in the layout of MMIN's features of IEMOCAP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from recipe_common.data.datasets.iemocap import FILES, STATISTICS, Array
from recipe_common.errors import require


@attrs.frozen
class SyntheticUtterances:
    """Settings of a synthetic set of utterances: text is the strongest sign of the class, audio and vision are weaker.

    Args:
        parts: Utterances for training, validation and test.
        num_classes: Number of classes.
        sizes: Features by modality.
        lengths: Steps in time by modality; for audio a mean, from half of which to one and a half times it steps vary.
        strengths: Shift of the features by their class, in standard deviations of their noise, by modality.
        ambiguous: Share of the utterances whose text has the features of another class.
        seed: Seed of all random numbers.
        version: Version of the files, raised when they change for another reason.
    """

    parts: tuple[int, int, int] = (320, 80, 80)
    num_classes: int = 4
    sizes: tuple[int, int, int] = (48, 24, 32)
    lengths: tuple[int, int, int] = (6, 16, 8)
    strengths: tuple[float, float, float] = (0.5, 0.12, 0.15)
    ambiguous: float = 0.15
    seed: int = 0
    version: int = 2

    def write(self, root: Path) -> None:
        """Write the h5 files, the statistics, and the lists of fold 1, and of fold 2 with val and test swapped."""
        random = np.random.default_rng(self.seed)
        names = [f"Ses01F_impro{i // 100:02d}_F{i % 100:03d}" for i in range(sum(self.parts))]
        labels = random.integers(self.num_classes, size=len(names))
        text_labels = np.where(random.random(len(names)) < self.ambiguous, random.permutation(labels), labels)
        audio: list[Array] = []
        for index, (modality, name) in enumerate(FILES.items()):
            features = self._features(random, index, text_labels if modality == "text" else labels)
            _write_h5(root / name, dict(zip(names, features, strict=True)))
            audio = features if modality == "audio" else audio
        self._write_lists(root / "target", np.array(names, "S")[:, None], np.eye(self.num_classes)[labels])
        frames = np.concatenate(audio[: self.parts[0]])
        statistics = {f"{fold}/{key}": value for fold in (1, 2) for key, value in _moments(frames).items()}
        _write_h5(root / STATISTICS, statistics)

    def _features(self, random: np.random.Generator, index: int, labels: NDArray[Any]) -> list[Array]:
        size, length = self.sizes[index], self.lengths[index]
        directions = random.standard_normal((self.num_classes, size))
        lengths = np.full(len(labels), length)
        scale, offset = np.ones(size), np.zeros(size)
        if index == 1:
            lengths = random.integers(length // 2, length + length // 2, size=len(labels), endpoint=True)
            scale, offset = random.uniform(0.1, 10, size), random.uniform(-5, 5, size)
            scale[0] = 0  # a constant feature, as in the real set
        features = []
        for steps, label in zip(lengths, labels, strict=True):
            values = random.standard_normal((steps, size)) + self.strengths[index] * directions[label]
            features.append((offset + scale * values).astype(np.float32))
        return features

    def _write_lists(self, folder: Path, names: NDArray[Any], labels: NDArray[Any]) -> None:
        train, val, _ = np.cumsum(self.parts)
        rows = {"trn": slice(train), "val": slice(train, val), "tst": slice(val, None)}
        for fold, short in ((1, rows), (2, {**rows, "val": rows["tst"], "tst": rows["val"]})):
            (folder / str(fold)).mkdir(parents=True)
            for part, of_part in short.items():
                np.save(folder / str(fold) / f"{part}_int2name.npy", names[of_part])
                np.save(folder / str(fold) / f"{part}_label.npy", labels[of_part])


def _moments(frames: Array) -> dict[str, Array]:
    exact = frames.astype(np.float64)  # in single precision, a constant feature has a deviation above 0
    return {"mean": exact.mean(axis=0).astype(np.float32), "std": exact.std(axis=0).astype(np.float32)}


def _write_h5(path: Path, datasets: Mapping[str, Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with require("h5py").File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
