"""Synthetic packed files in the form of MMSA, in which each modality expresses a sentiment of its own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from recipe_common.data.readers.packed_parts import MODALITIES, SPLITS, Shapes

Array = NDArray[np.float64]
LETTERS = dict(zip(MODALITIES, "TAV", strict=True))
FIFTHS = 5
"""Sentiments are means over five annotators: fifths from -5 / 5 to 5 / 5."""
WORDS = {-1: ("烂", "差", "难过"), 0: ("电影", "今天", "他"), 1: ("好", "开心", "喜欢")}
ANNOTATIONS = {-1: "Negative", 0: "Neutral", 1: "Positive"}


@attrs.frozen
class SyntheticSims:
    """Settings of a file in the form of `unaligned_39.pkl` of CH-SIMS.

    Args:
        parts: Segments for training, validation and test.
        steps: Most steps of text, audio and vision; shorter segments have zeros behind.
        sizes: Features of text, audio and vision.
        strengths: Shift of the features by the strongest sentiment, in standard deviations of their noise, by modality.
        agreement: Share of the joint sentiment in that of each modality, 0 to 1; the rest is its own.
        seed: Seed of all random numbers.
        version: Version of the files, raised when they change for another reason.
    """

    parts: tuple[int, int, int] = (320, 80, 120)
    steps: tuple[int, int, int] = (10, 16, 12)
    sizes: tuple[int, int, int] = (24, 12, 16)
    strengths: tuple[float, float, float] = (1.2, 0.6, 0.6)
    agreement: float = 0.6
    seed: int = 0
    version: int = 1

    @property
    def shapes(self) -> Shapes:
        """Shapes in the file."""
        return Shapes("synthetic", *((None, size) for size in self.sizes))

    def write(self, path: Path) -> None:
        """Write the file, with the faults of real ones: -inf in the audio and a segment without a face."""
        random = np.random.default_rng(self.seed)
        directions = [random.standard_normal(size) for size in self.sizes]
        splits = {
            split: self._split(random, split, count, directions)
            for split, count in zip(SPLITS.values(), self.parts, strict=True)
        }
        with path.open("wb") as file:
            pickle.dump(splits, file, protocol=4)

    def _split(self, random: np.random.Generator, split: str, count: int, directions: list[Array]) -> dict[str, Any]:
        joint = random.integers(-FIFTHS, FIFTHS, count, endpoint=True) / FIFTHS
        content: dict[str, Any] = {}
        lengths: dict[str, NDArray[np.int64]] = {}
        for modality, steps, strength, direction in zip(
            MODALITIES, self.steps, self.strengths, directions, strict=True
        ):
            other = random.uniform(-1, 1, count)
            own = np.round(FIFTHS * (self.agreement * joint + (1 - self.agreement) * other)) / FIFTHS
            lengths[modality] = random.integers(steps // 2, steps, count, endpoint=True)
            is_real = np.arange(steps) < lengths[modality][:, None]
            values = own[:, None, None] * strength * direction + random.standard_normal((count, steps, len(direction)))
            content[modality] = (values * is_real[..., None]).astype(np.float32)
            content |= _labels(own, f"_{LETTERS[modality]}")
        mask = np.arange(self.steps[0]) < lengths["text"][:, None]
        ids = random.integers(1, 100, mask.shape) * mask
        content["audio"][0, 0, 0] = -np.inf
        content["vision"][-1], lengths["vision"][-1] = 0, 0
        return {
            **content,
            **_labels(joint, ""),
            "raw_text": np.array([random.choice(WORDS[int(np.sign(value))]) for value in joint]),
            "id": np.array([f"synthetic_{split}_{row // 5}$_${row % 5:04d}" for row in range(count)]),
            "text_bert": np.stack([ids, mask, np.zeros_like(ids)], axis=1),
            "audio_lengths": lengths["audio"].tolist(),
            "vision_lengths": lengths["vision"].tolist(),
            "annotations": np.array([ANNOTATIONS[int(np.sign(value))] for value in joint]),
        }


def _labels(sentiment: Array, ending: str) -> dict[str, NDArray[np.float32]]:
    return {
        f"regression_labels{ending}": sentiment.astype(np.float32),
        f"classification_labels{ending}": (np.sign(sentiment) + 1).astype(np.float32),
    }
