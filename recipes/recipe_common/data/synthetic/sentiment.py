"""Synthetic sequence features for sentiment: text is its strongest sign, audio and vision are weaker."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from recipe_common.data.readers.packed_parts import MODALITIES, SPLITS, Shapes

Array = NDArray[np.float64]
FIFTHS = 15
"""Sentiments are means over five annotators: fifths from -15 / 5 to 15 / 5, at times exactly 0."""


@attrs.frozen
class SyntheticSequences:
    """Settings of a packed file in the format of MultiBench.

    Args:
        parts: Segments for training, validation and test.
        steps: Most words of a segment; shorter ones have zeros in front.
        sizes: Features of text, audio and vision.
        strengths: Shift of the features by the strongest sentiment, in standard deviations of their noise, by modality.
        ambiguous: Share of the segments whose text has the features of another sentiment.
        two_classes: Whether labels are -1 and 1 instead of sentiments.
        seed: Seed of all random numbers.
        version: Version of the files, raised when they change for another reason.
    """

    parts: tuple[int, int, int] = (320, 80, 120)
    steps: int = 12
    sizes: tuple[int, int, int] = (24, 12, 16)
    strengths: tuple[float, float, float] = (0.6, 0.3, 0.18)
    ambiguous: float = 0.15
    two_classes: bool = False
    seed: int = 0
    version: int = 1

    @property
    def shapes(self) -> Shapes:
        """Shapes in the file."""
        return Shapes("synthetic", *((self.steps, size) for size in self.sizes))

    def write(self, path: Path) -> None:
        """Write the file, with the faults of real ones: -inf in the audio and a segment without text."""
        random = np.random.default_rng(self.seed)
        directions = [random.standard_normal(size) for size in self.sizes]
        splits = {
            split: self._split(random, split, count, directions)
            for split, count in zip(SPLITS.values(), self.parts, strict=True)
        }
        with path.open("wb") as file:
            pickle.dump(splits, file, protocol=4)

    def _split(
        self, random: np.random.Generator, split: str, count: int, directions: list[Array]
    ) -> dict[str, NDArray[Any]]:
        sentiment = random.choice((-1.0, 1.0), count) if self.two_classes else sentiments(random, count)
        strongest = 1 if self.two_classes else FIFTHS / 5
        text_sentiment = exchanged(random, sentiment, self.ambiguous)
        is_word = np.arange(self.steps) >= random.integers(0, self.steps // 2, (count, 1))
        content: dict[str, NDArray[Any]] = {}
        for modality, strength, direction in zip(MODALITIES, self.strengths, directions, strict=True):
            expressed = (text_sentiment if modality == "text" else sentiment)[:, None, None]
            shift = expressed / strongest * strength * direction
            values = shift + random.standard_normal((count, self.steps, len(direction)))
            content[modality] = (values * is_word[..., None]).astype(np.float32)
        content["audio"][0, -1, 0] = -np.inf
        content["text"][-1] = 0
        content["labels"] = sentiment.astype(np.float32).reshape(count, 1, 1)
        content["id"] = np.array(
            [[f"synthetic_{split}_{row // 5}", str(row % 5), str(row % 5 + 1)] for row in range(count)]
        )
        return content


@attrs.frozen
class SyntheticSpeech:
    """Settings of files in the format of Li et al. (ICCV 2023) for CMU-MOSEI: words and mel spectrograms by segment.

    Args:
        parts: Segments for training, validation and test.
        words: Most words of a segment.
        frames: Most audio steps of a segment.
        vector_size: Size of a word vector.
        mels: Features of an audio step.
        strength: Shift of the audio by the strongest sentiment, in standard deviations of its noise.
        ambiguous: Share of the segments with the words of another sentiment.
        seed: Seed of all random numbers.
        version: Version of the files, raised when they change for another reason.
    """

    parts: tuple[int, int, int] = (320, 80, 120)
    words: int = 14
    frames: int = 20
    vector_size: int = 16
    mels: int = 10
    strength: float = 0.2
    ambiguous: float = 0.15
    seed: int = 0
    version: int = 2

    def write(self, root: Path) -> None:
        """Write sentences, mel spectrograms and sentiments of every split, the vocabulary and its vectors."""
        random = np.random.default_rng(self.seed)
        vocabulary = ["UNK", *WORDS["bad"], *WORDS["good"], *WORDS["other"]]
        np.save(
            root / "train_glove.npy", random.standard_normal((len(vocabulary), self.vector_size)).astype(np.float32)
        )
        # As in that code, the first word shares its index with UNK, whose vector is in the row of padding.
        _dump(root / "token_to_ix.pkl", {word: max(1, index) for index, word in enumerate(vocabulary)})
        direction = random.standard_normal(self.mels)
        for split, count in zip(SPLITS.values(), self.parts, strict=True):
            sentiment = sentiments(random, count)
            text_sentiment = exchanged(random, sentiment, self.ambiguous)
            names = [f"synthetic_{split}_{row // 5}[{row % 5}]" for row in range(count)]
            sentences = [self._sentence(random, value) for value in text_sentiment]
            mels = [self._audio(random, value / 3 * self.strength * direction) for value in sentiment]
            _dump(root / f"{split}_sentences.p", dict(zip(names, sentences, strict=True)))
            _dump(root / f"{split}_mels.p", dict(zip(names, mels, strict=True)))
            _dump(root / f"{split}_sentiment.p", dict(zip(names, sentiment.tolist(), strict=True)))

    def _sentence(self, random: np.random.Generator, sentiment: float) -> list[str]:
        kinds = random.choice(("other", "good", "bad"), random.integers(4, self.words), p=self._odds(sentiment))
        return [str(random.choice(WORDS[kind])) for kind in kinds] + ["Right?", "--"]

    @staticmethod
    def _odds(sentiment: float) -> tuple[float, float, float]:
        """Return the probabilities that a word is neutral, good or bad."""
        good = 0.35 + 0.33 * sentiment / 3
        return 0.3, good, 0.7 - good

    def _audio(self, random: np.random.Generator, shift: Array) -> NDArray[np.float32]:
        frames = random.integers(5, self.frames)
        return (shift + random.standard_normal((frames, self.mels))).astype(np.float32)


WORDS = {
    "bad": ("awful", "boring", "broken", "cheap", "dull", "hate", "sad", "worse"),
    "good": ("brilliant", "clever", "enjoy", "fine", "great", "happy", "love", "nice"),
    "other": ("actor", "and", "book", "camera", "friend", "it", "movie", "music", "phone", "scene", "the", "was"),
}


def sentiments(random: np.random.Generator, count: int) -> Array:
    """Return `count` sentiments from -3 to 3."""
    return random.integers(-FIFTHS, FIFTHS, count, endpoint=True) / 5


def exchanged(random: np.random.Generator, sentiment: Array, share: float) -> Array:
    """Return the sentiments (N,) with a share of them, 0 to 1, exchanged for those of other samples."""
    return np.where(random.random(len(sentiment)) < share, random.permutation(sentiment), sentiment)


def _dump(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=4)
