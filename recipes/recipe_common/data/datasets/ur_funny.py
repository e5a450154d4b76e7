"""Readers of UR-FUNNY: the packed file of MultiBench (version 2), and the six files of the release (versions 1 and 2).

A segment is a punchline. N segments, T words.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from recipe_common.data.datasets.packed_files import foreign_files
from recipe_common.data.readers.packed_parts import MODALITIES, Shapes, check_range, finite
from recipe_common.data.readers.packed_sequences import Packed, read_packed
from recipe_common.data.readers.pickles import load_pickle
from recipe_common.data.samples.padding import left_aligned
from recipe_common.errors import RecipeError
from recipe_common.files import listing

PACKED = "humor.pkl"
FOLDS, WORDS, LANGUAGE = "data_folds.pkl", "word_embedding_list.pkl", "language_sdk.pkl"
AUDIO, VISION, LABELS = "covarep_features_sdk.pkl", "openface_features_sdk.pkl", "humor_label_sdk.pkl"
RELEASE = (FOLDS, LANGUAGE, WORDS, AUDIO, VISION, LABELS)
LANGUAGE_1 = "word_embedding_indexes_sdk.pkl"
"""Name in version 1 of what is LANGUAGE in version 2."""
VISION_1 = 75
"""OpenFace features in version 1."""
STEPS = 50
SIZES = {"text": 300, "audio": 81, "vision": 371}
"""GloVe, COVAREP and OpenFace 2 features, in the order of the modalities."""
SHAPES = Shapes("packed by MultiBench", *((STEPS, size) for size in SIZES.values()))
LABEL_RANGE = (-1.0, 1.0)


@attrs.frozen
class Punchlines:
    """Punchlines, padded at the end: word n is at step n in all modalities.

    Attributes:
        path: File or folder that was read.
        splits: `train`, `val` and `test`; label 1 is humour, all others are none.
        skipped: A line for each segment of the release that is absent or not aligned by word.
    """

    path: Path
    splits: dict[str, Packed]
    skipped: tuple[str, ...] = ()


def read_ur_funny(root: Path, shapes: Shapes = SHAPES) -> Punchlines:
    """Read the packed file, or else the release: version 2, or version 1 with 75 features of the face.

    Args:
        root: The packed file, or the folder that holds it or the release.
        shapes: Shapes of the arrays in the packed file.

    Raises:
        RecipeError: If both are absent, or see `read_packed`.
    """
    path = root if root.is_file() else root / PACKED
    if path.is_file():
        return Punchlines(
            path, {name: left_aligned(part) for name, part in read_packed(path, (shapes,), LABEL_RANGE).items()}
        )
    language = LANGUAGE_1 if (root / LANGUAGE_1).is_file() and not (root / LANGUAGE).is_file() else LANGUAGE
    missing = [name for name in RELEASE if not (root / (language if name == LANGUAGE else name)).is_file()]
    if missing:
        found = f"of the release all but {', '.join(missing)}" if len(missing) < len(RELEASE) else listing(root)
        found = "; ".join([found, *foreign_files(root)])
        raise RecipeError(
            f"{root} should hold {PACKED}, or the files of the release ({', '.join(RELEASE)})",
            found=found,
            fix="download the missing files, point --data-root at the packed file, or leave it out to train on a small "
            "synthetic set",
        )
    return _read_release(root, language)


def _read_release(root: Path, language: str) -> Punchlines:
    files = {name: _read_dict(root / name) for name in (FOLDS, language, AUDIO, VISION, LABELS)}
    sizes = {**SIZES, "vision": _vision_size(root / VISION, files[VISION])}
    vectors = _read_vectors(root / WORDS)
    splits, skipped = {}, []
    for ours, theirs in (("train", "train"), ("val", "dev"), ("test", "test")):
        if theirs not in files[FOLDS]:
            raise _unexpected(root / FOLDS, "the keys train, dev and test", ", ".join(map(str, files[FOLDS])))
        segments, faults = _read_segments(root, language, files, vectors, files[FOLDS][theirs], sizes)
        splits[ours] = _pack(root / LABELS, ours, segments, sizes)
        skipped += [f"{ours}: {fault}" for fault in faults]
    return Punchlines(root, splits, tuple(skipped))


def _vision_size(path: Path, features: Mapping[Any, Any]) -> int:
    """Return the number of OpenFace features of the first punchline that has words: that of version 1, or else of 2."""
    for id_, entry in features.items():
        rows = entry.get("punchline_features") if isinstance(entry, dict) else None
        if rows is None:
            continue
        if not _is_list(rows):
            raise _unexpected(path, f"punchline_features (T, D) for {id_}", type(rows).__name__)
        if len(rows):
            return VISION_1 if _is_list(rows[0]) and len(rows[0]) == VISION_1 else SIZES["vision"]
    return SIZES["vision"]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _read_dict(path: Path) -> Mapping[Any, Any]:
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise _unexpected(path, "a dict", type(content).__name__)
    return content


def _read_vectors(path: Path) -> NDArray[np.float32]:
    content = load_pickle(path)
    try:
        vectors = np.asarray(content, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise _unexpected(path, "a list of word vectors of one size", str(error)) from error
    if vectors.ndim != 2 or vectors.shape[1] != SIZES["text"]:
        raise _unexpected(path, f"word vectors (V, {SIZES['text']})", str(vectors.shape))
    return vectors


@attrs.frozen
class _Segment:
    name: str
    label: float
    features: dict[str, NDArray[Any]]


def _read_segments(
    root: Path,
    language: str,
    files: Mapping[str, Mapping[Any, Any]],
    vectors: NDArray[np.float32],
    ids: Any,
    sizes: Mapping[str, int],
) -> tuple[list[_Segment], list[str]]:
    segments, faults = [], []
    for id_ in ids:
        absent = [name for name in (language, AUDIO, VISION, LABELS) if id_ not in files[name]]
        if absent:
            faults.append(f"{id_}: not in {', '.join(absent)}")
            continue
        features = {
            "text": _vectors_of(root / language, id_, files[language][id_], vectors),
            "audio": _features_of(root / AUDIO, id_, files[AUDIO][id_], sizes["audio"]),
            "vision": _features_of(root / VISION, id_, files[VISION][id_], sizes["vision"]),
        }
        counts = {modality: len(values) for modality, values in features.items()}
        if len(set(counts.values())) > 1:
            faults.append(f"{id_}: not aligned by word: {counts}")
        else:
            segments.append(_Segment(str(id_), float(files[LABELS][id_]), features))
    return segments, faults


def _vectors_of(path: Path, id_: Any, entry: Any, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    indices = np.asarray(_entry(path, id_, entry, "punchline_embedding_indexes"), dtype=np.int64).reshape(-1)
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(vectors):
        raise _unexpected(path, f"word indices below {len(vectors)} for {id_}", f"{indices.min()} to {indices.max()}")
    return vectors[indices]


def _features_of(path: Path, id_: Any, entry: Any, size: int) -> NDArray[Any]:
    try:
        values = np.asarray(_entry(path, id_, entry, "punchline_features"), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise _unexpected(path, f"features (T, {size}) for {id_}", str(error)) from error
    values = values.reshape(0, size) if values.size == 0 else values
    if values.ndim != 2 or values.shape[1] != size:
        raise _unexpected(path, f"features (T, {size}) for {id_}", str(values.shape))
    return values


def _entry(path: Path, id_: Any, entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise _unexpected(path, f"{key} for {id_}", ", ".join(entry) if isinstance(entry, dict) else str(type(entry)))
    return entry[key]


def _pack(path: Path, split: str, segments: list[_Segment], sizes: Mapping[str, int]) -> Packed:
    """Pack the first `STEPS` words of every segment, with zeros after the last one."""
    without_text = tuple(segment.name for segment in segments if not segment.features["text"][:STEPS].any())
    segments = [segment for segment in segments if segment.features["text"][:STEPS].any()]
    tensors: dict[str, Any] = {}
    repaired: dict[str, int] = {}
    for modality in MODALITIES:
        padded = np.zeros((len(segments), STEPS, sizes[modality]), np.float32)
        bad = 0
        for row, segment in enumerate(segments):
            values, count = finite(segment.features[modality][:STEPS])
            padded[row, : len(values)] = values
            bad += count
        tensors[modality] = torch.from_numpy(padded)
        if bad:
            repaired[modality] = bad
    labels = np.array([segment.label for segment in segments], np.float32)
    check_range(path, split, labels, LABEL_RANGE)
    return Packed(
        **tensors,
        labels=torch.from_numpy(labels),
        ids=tuple(segment.name for segment in segments),
        kind="release" if sizes == SIZES else "release, version 1",
        dropped=without_text,
        repaired=repaired,
    )


def _unexpected(path: Path, content: str, found: str) -> RecipeError:
    return RecipeError(f"{path} should hold {content}", found=found, fix="take version 2 of the release")
