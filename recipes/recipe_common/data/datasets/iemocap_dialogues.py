"""Reader of IEMOCAP features by dialogue: one vector per utterance and modality, in a pickle of Python 2 or 3.

Code for emotions in conversations passes these files on: DialogueRNN (Majumder et al., AAAI 2019) and its successors. A
file is a tuple of dicts by dialogue: ids of the utterances, speakers, labels, text (in some forks four versions of
it), audio, vision and sentences; then the dialogues for training and for testing.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe_common.data.readers.pickles import load_pickle
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.seeding import permutation
from recipe_common.data.samples.sources import Source
from recipe_common.data.samples.splits import Split, check_disjoint
from recipe_common.errors import RecipeError

EMOTIONS = ("happy", "sad", "neutral", "angry", "happy", None)
"""Class of each label: happiness, sadness, neutral, anger, excitement, which counts as happy, and frustration."""
ORDER = ("ids", "speakers", "labels", "text", "audio", "vision", "sentences", "train", "test")
VERSIONS = ("text", "text 2", "text 3", "text 4")
"""Four versions of the text features, outputs of four layers, in the forks with twelve entries; the first is read."""
ORDERS = {len(order): order for order in (ORDER, (*ORDER[:3], *VERSIONS, *ORDER[4:]))}
VAL_SHARE = 0.1
"""Share of the dialogues for training that are set aside for validation; the files have no such part."""


@attrs.frozen
class Dialogues:
    """Utterances of four classes, with their features.

    Args:
        path: The file.
        split: The utterances of each part; those of one dialogue are in one part.
        features: By modality and utterance, (D,).
        left_out: Number of utterances of other classes.
    """

    path: Path
    split: Split
    features: dict[str, dict[str, NDArray[np.float32]]]
    left_out: int


def read_dialogues(path: Path, modalities: Sequence[str], seed: int) -> Dialogues:
    """Read a file.

    Args:
        path: The file.
        modalities: Names of the modalities, each `text`, `audio` or `vision`.
        seed: Seed of the choice of dialogues for validation.

    Raises:
        RecipeError: If it is no whole pickle of data, has another form, features that differ in size or are not
            finite, labels out of range, a dialogue in both lists, or an utterance in two dialogues.
    """
    content = load_pickle(path)
    order = ORDERS.get(len(content)) if isinstance(content, tuple | list) else None
    if order is None:
        found = f"{len(content)} entries" if isinstance(content, tuple | list | dict) else type(content).__name__
        raise RecipeError(
            f"{path} should hold a tuple of {' or '.join(map(str, ORDERS))} entries: {', '.join(ORDER)}",
            found=found,
            fix="take the features of DialogueRNN or of its forks; a file of labels alone, as of GCNet, has none",
        )
    entries = dict(zip(order, content, strict=True))
    parts = {part: sorted(_names(path, part, entries[part])) for part in ("train", "test")}
    check_disjoint(parts, str, of=f"lists of {path}", unit="dialogue", fix="download it again")
    held = permutation(len(parts["train"]), seed)[: round(VAL_SHARE * len(parts["train"]))]
    parts["val"] = [parts["train"][index] for index in held]
    parts["train"] = sorted(set(parts["train"]) - set(parts["val"]))
    rows: dict[str, list[Row]] = {part: [] for part in parts}
    features: dict[str, dict[str, NDArray[np.float32]]] = {modality: {} for modality in modalities}
    seen: dict[str, str] = {}
    left_out = 0
    for part, dialogues in parts.items():
        for dialogue in dialogues:
            for name, label, vectors in _utterances(path, entries, dialogue, modalities):
                _check_once(path, seen, name, dialogue)
                if label is None:
                    left_out += 1
                    continue
                rows[part].append(Row(name, label))
                for modality, vector in vectors.items():
                    features[modality][name] = vector
    _check_sizes(path, features)
    return Dialogues(path, Split(**{part: tuple(each) for part, each in rows.items()}), features, left_out)


def dialogue_sources(dialogues: Dialogues) -> tuple[Source, ...]:
    """Return one source per modality, whose sequences (1, D) have one step."""
    return tuple(
        Source(modality, f"{modality} features", str(dialogues.path), partial(_find, vectors), read, read)
        for modality, vectors in dialogues.features.items()
        for read in (partial(_read, vectors),)
    )


def _find(vectors: dict[str, Any], row: Row) -> str | None:
    return row.name if row.name in vectors else None


def _read(vectors: dict[str, NDArray[np.float32]], name: str, *, seed: int | None = None) -> Tensor:
    return torch.from_numpy(vectors[name])[None]


def _names(path: Path, part: str, dialogues: Any) -> set[str]:
    if not isinstance(dialogues, set | frozenset | list | tuple) or not dialogues:
        raise RecipeError(
            f"{path} should list the dialogues of {part}", found=type(dialogues).__name__, fix="download it again"
        )
    return set(map(str, dialogues))


def _check_once(path: Path, seen: dict[str, str], name: str, dialogue: str) -> None:
    """Raise a RecipeError if an utterance was seen before; features are found by its name."""
    if name in seen:
        raise RecipeError(
            f"{path} should hold every utterance once",
            found=f"{name} in {seen[name]} and in {dialogue}",
            fix="download it again",
        )
    seen[name] = dialogue


def _emotion(label: Any) -> str | None:
    """Return the class of a label.

    Raises:
        ValueError: If it is no integer in range; indices below 0 would count from the end.
    """
    if isinstance(label, bool | np.bool_) or label != int(label) or not 0 <= label < len(EMOTIONS):
        raise ValueError(f"label {label}")
    return EMOTIONS[int(label)]


def _utterances(
    path: Path, entries: dict[str, Any], dialogue: str, modalities: Sequence[str]
) -> list[tuple[str, str | None, dict[str, NDArray[np.float32]]]]:
    """Return name, class (None: another one) and features of each utterance of a dialogue."""
    try:
        labels = [_emotion(label) for label in entries["labels"][dialogue]]
        ids = [str(each) for each in entries["ids"][dialogue]]
        matrices = {name: np.asarray(entries[name][dialogue], np.float32) for name in modalities}
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise RecipeError(
            f"{path} should hold ids, labels from 0 to {len(EMOTIONS) - 1} and features of every dialogue",
            found=f"{type(error).__name__}: {error} in {dialogue}",
            fix="download it again",
        ) from error
    sizes = {"ids": len(ids), "labels": len(labels)} | {name: len(matrix) for name, matrix in matrices.items()}
    if len(set(sizes.values())) > 1 or any(matrix.ndim != 2 for matrix in matrices.values()):
        raise RecipeError(
            f"{path} should hold one id, label and vector for each utterance",
            found=", ".join(f"{size:,} {name}" for name, size in sizes.items()) + f" in {dialogue}",
            fix="download it again",
        )
    for name, matrix in matrices.items():
        if not np.isfinite(matrix).all():
            raise RecipeError(
                f"{path} should hold finite features", found=f"others in {name} of {dialogue}", fix="download it again"
            )
    return [
        (name, label, {modality: matrix[index] for modality, matrix in matrices.items()})
        for index, (name, label) in enumerate(zip(ids, labels, strict=True))
    ]


def _check_sizes(path: Path, features: dict[str, dict[str, NDArray[np.float32]]]) -> None:
    for modality, vectors in features.items():
        sizes = Counter(len(vector) for vector in vectors.values())
        if len(sizes) != 1 or 0 in sizes:
            raise RecipeError(
                f"{path} should hold {modality} vectors of one size",
                found=", ".join(map(str, sorted(sizes))) or "no utterance",
                fix="download it again",
            )
