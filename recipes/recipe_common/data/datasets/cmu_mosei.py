"""Readers of CMU-MOSEI: packed features (MulT, MultiBench, MMSA), and files of words and mel spectrograms.

The latter are the files of the code of Li et al. (ICCV 2023). N segments, L words, T audio steps, V words in the
vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe_common.data.datasets.packed_files import PackedFile, find_packed, read_variant
from recipe_common.data.readers.decoding import decoding, open_npy
from recipe_common.data.readers.mmsa import TextStates
from recipe_common.data.readers.non_files import file_error
from recipe_common.data.readers.packed_parts import SPLITS, Shapes, check_range, finite
from recipe_common.data.readers.packed_sequences import Packed
from recipe_common.data.readers.pickles import load_pickle
from recipe_common.errors import RecipeError
from recipe_common.files import listing

LABEL_RANGE = (-3.0, 3.0)
FILES = {
    "aligned": PackedFile("mosei_senti_data.pkl", Shapes("aligned by word", (50, 300), (50, 74), (50, 35))),
    "noalign": PackedFile("mosei_senti_data_noalign.pkl", Shapes("not aligned", (50, 300), (500, 74), (500, 35))),
    "multibench": PackedFile(
        "mosei_raw.pkl", Shapes("MultiBench", (50, 300), (50, 74), (50, 713)), label_columns=(1, 7)
    ),
    "mmsa_aligned": PackedFile(
        "aligned_50.pkl", Shapes("MMSA, aligned by token", (50, 768), (50, 74), (50, 35)), is_mmsa=True
    ),
    "mmsa_unaligned": PackedFile(
        "unaligned_50.pkl", Shapes("MMSA, not aligned", (50, 768), (None, 74), (None, 35)), is_mmsa=True
    ),
}
"""GloVe text, COVAREP audio and FACET vision. The file of MultiBench has OpenFace 2 vision, and seven labels: sentiment
and six emotions. The text of MMSA is from BERT."""
VOCABULARY, VECTORS = "token_to_ix.pkl", "train_glove.npy"
UNKNOWN = "UNK"
VECTOR_SIZE = 300
MELS = 80
REMOVED = re.compile(r"[.,'!?\"()*#:;]")
SPACES = re.compile(r"[-/]")


def read_mosei(
    root: Path,
    wanted: str,
    files: Mapping[str, PackedFile] = FILES,
    *,
    drop_empty: bool,
    speech_flags: str,
    states: TextStates | None = None,
) -> tuple[Path, dict[str, Packed]]:
    """Read a packed file.

    Args:
        root: The file under any name, or the folder that holds it under its own.
        wanted: Key of the file in `files`.
        files: All variants that are read.
        drop_empty: Whether segments without text are left out.
        speech_flags: Flags for words and mel spectrograms, named in a message where these are in the folder.
        states: Function that computes the text features of a file of MMSA from its `text_bert`.

    Returns:
        The path of the file, and the splits `train`, `val` and `test`.

    Raises:
        RecipeError: If the file is absent or of another variant, or see `read_packed` and `read_mmsa`.
    """
    has_speech = (root / "train_mels.p").is_file()
    fix = f"add {speech_flags} for the words and mel spectrograms that are there" if has_speech else None
    path = find_packed(root, wanted, files, fix)
    return path, read_variant(path, wanted, files, LABEL_RANGE, drop_empty=drop_empty, states=states)


@attrs.frozen
class SpeechSplit:
    """Words and mel spectrograms of one split.

    Attributes:
        text: Word indices, int64 (N, L), 0 after the last word.
        audio: Mel spectrograms, float32 (N, T, D), 0 after the last step.
        labels: Sentiments, float32 (N,).
        ids: Names of the segments.
    """

    text: Tensor
    audio: Tensor
    labels: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@attrs.frozen
class Speech:
    """Words and mel spectrograms of all splits.

    Attributes:
        splits: `train`, `val` and `test`.
        vectors: Word vectors, float32 (V, D); row 0 is that of padding, too.
        summary: Lines for the start of a run.
        skipped: A line for each segment that lacks words or audio.
    """

    splits: dict[str, SpeechSplit]
    vectors: Tensor
    summary: tuple[str, ...]
    skipped: tuple[str, ...]


def read_speech(root: Path, tokens: int, mels: int = MELS, *, speech_flags: str) -> Speech:
    """Read `<split>_sentences.p`, `<split>_mels.p` and `<split>_sentiment.p`, vocabulary and word vectors.

    The code of Li et al. (ICCV 2023) reads fixed lists of segments as well. Here a segment counts if it has a
    sentiment, words and audio. Without vocabulary and vectors, which that code makes with spaCy, the words of the
    training split get random vectors.

    Args:
        root: Folder of the files.
        tokens: Number of words and of audio steps that are kept of every segment.
        mels: Features of an audio step.
        speech_flags: Flags that select these files, for a message.

    Raises:
        RecipeError: If a file is missing, damaged or of another shape, or labels are out of range.
    """
    files = {split: {part: root / f"{split}_{part}.p" for part in PARTS} for split in SPLITS.values()}
    missing = [path.name for paths in files.values() for path in paths.values() if not path.is_file()]
    if missing:
        raise RecipeError(
            f"{root} should hold {', '.join(missing)}",
            found=listing(root),
            fix=f"download the files of the code of Li et al. (ICCV 2023), or leave {speech_flags} out for a packed "
            "file",
        )
    raw = {split: {part: _read_dict(path) for part, path in paths.items()} for split, paths in files.items()}
    vocabulary, vectors, origin = _read_vocabulary(root, raw["train"]["sentences"])
    splits: dict[str, SpeechSplit] = {}
    summary, skipped = [f"word vectors: {origin}"], []
    for ours, split in SPLITS.items():
        content = raw.pop(split)
        names = sorted(content["sentiment"], key=str)
        absent = {name: [part for part in PARTS if name not in content[part]] for name in names}
        kept = [name for name in names if not absent[name]]
        skipped += [f"{ours}: {name}: no {' or '.join(absent[name])}" for name in names if absent[name]]
        audio, repaired = _audio(files[split]["mels"], [content["mels"][name] for name in kept], tokens, mels)
        splits[ours] = SpeechSplit(
            text=_text([content["sentences"][name] for name in kept], vocabulary, tokens),
            audio=audio,
            labels=_labels(files[split]["sentiment"], ours, [content["sentiment"][name] for name in kept]),
            ids=tuple(map(str, kept)),
        )
        note = f"; {repaired:,} audio values not finite, set to 0" if repaired else ""
        summary.append(f"{ours}: {len(kept):,} of {len(names):,} segments{note}")
    return Speech(splits, vectors, tuple(summary), tuple(skipped))


PARTS = ("sentences", "mels", "sentiment")


def clean_words(sentence: Sequence[Any]) -> list[str]:
    """Return the words of a sentence in lower case without punctuation; words of punctuation alone are left out.

    Args:
        sentence: Words, each a `str`, `bytes`, or a sequence with one of them.
    """
    words = [SPACES.sub(" ", REMOVED.sub("", _word(entry).lower())) for entry in sentence]
    return [word for word in words if word]


def _word(entry: Any) -> str:
    if isinstance(entry, list | tuple | np.ndarray):
        entry = np.asarray(entry, dtype=object).reshape(-1)[0]
    return entry.decode(errors="replace") if isinstance(entry, bytes) else str(entry)


def _read_dict(path: Path) -> Mapping[Any, Any]:
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} should hold a dict by segment", found=type(content).__name__, fix="download it again"
        )
    return content


def _read_vocabulary(root: Path, sentences: Mapping[Any, Any]) -> tuple[dict[str, int], Tensor, str]:
    present = [name for name in (VOCABULARY, VECTORS) if (root / name).is_file()]
    if not present:
        words = sorted({word for sentence in sentences.values() for word in clean_words(sentence)} - {UNKNOWN})
        vocabulary = {UNKNOWN: 1, **{word: index for index, word in enumerate(words, start=2)}}
        vectors = torch.randn(len(words) + 2, VECTOR_SIZE, generator=torch.Generator().manual_seed(0))
        return vocabulary, vectors, f"random, there are no {VOCABULARY} and {VECTORS}"
    if len(present) == 1:
        raise RecipeError(
            f"{root} should hold {VOCABULARY} and {VECTORS}",
            found=f"{present[0]} alone",
            fix="add the other file, or remove this one",
        )
    vocabulary = {str(word): int(index) for word, index in _read_dict(root / VOCABULARY).items()}
    vectors = _read_vectors(root / VECTORS)
    outside = [word for word, index in vocabulary.items() if not 1 <= index < len(vectors)]
    if outside or UNKNOWN not in vocabulary:
        found = f"{len(outside)} indices out of range, such as that of `{outside[0]}`" if outside else f"no {UNKNOWN}"
        raise RecipeError(
            f"{root / VOCABULARY} should have {UNKNOWN}, and indices from 1 to {len(vectors) - 1}, the last row of "
            f"{VECTORS}",
            found=found,
            fix="take both files from one place",
        )
    return vocabulary, vectors, f"{root / VECTORS}, {len(vectors):,} words"


def _read_vectors(path: Path) -> Tensor:
    def error(found: str) -> RecipeError:
        return file_error(path, f"{path} should hold an array of word vectors", found=found, fix="download it again")

    with decoding(error):
        values, bad = finite(open_npy(path, error))
    if values.ndim != 2 or bad:
        raise RecipeError(
            f"{path} should hold finite word vectors (V, D)",
            found=f"shape {values.shape}, {bad} values not finite",
            fix="download it again",
        )
    return torch.from_numpy(values)


def _text(sentences: Sequence[Any], vocabulary: Mapping[str, int], tokens: int) -> Tensor:
    indices = torch.zeros(len(sentences), tokens, dtype=torch.int64)
    for row, sentence in enumerate(sentences):
        known = [vocabulary.get(word, vocabulary[UNKNOWN]) for word in clean_words(sentence)[:tokens]]
        indices[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
    return indices


def _audio(path: Path, features: Sequence[Any], tokens: int, mels: int) -> tuple[Tensor, int]:
    padded = np.zeros((len(features), tokens, mels), np.float32)
    for row, values in enumerate(features):
        array = np.asarray(values)
        if array.ndim != 2 or array.shape[1] != mels or array.dtype.kind not in "fiu":
            raise RecipeError(
                f"{path} should hold audio features (T, {mels}) by segment",
                found=f"{array.dtype}, {array.shape}",
                fix="download it again",
            )
        padded[row, : min(tokens, len(array))] = array[:tokens]
    clean, repaired = finite(padded)
    return torch.from_numpy(clean), repaired


def _labels(path: Path, split: str, values: Sequence[Any]) -> Tensor:
    try:
        labels: NDArray[np.float32] = np.array([np.asarray(value).item() for value in values], np.float32)
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"{path} should hold one sentiment per segment", found=str(error), fix="download it again"
        ) from error
    check_range(path, split, labels, LABEL_RANGE)
    return torch.from_numpy(labels)
