"""Reader of packed sequence features: one pickle with text, audio and vision features of all segments of a dataset.

The files of MulT and MultiBench (CMU-MOSI, CMU-MOSEI, UR-FUNNY) are {"train", "valid", "test"} -> {"text", "audio",
"vision", "labels", "id"}. N segments, T steps in time, D features; shorter segments are filled up with zeros, in front.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe_common.data.readers.pickles import load_pickle
from recipe_common.errors import RecipeError

MODALITIES = ("text", "audio", "vision")
SPLITS = {"train": "train", "val": "valid", "test": "test"}
"""Names of the splits here, and in the files."""


@attrs.frozen
class Shapes:
    """Shapes in packed files of one kind: (steps, features) of every modality. Steps of None: any number.

    Attributes:
        name: Name of the kind in messages, such as `aligned`.
    """

    name: str
    text: tuple[int | None, int]
    audio: tuple[int | None, int]
    vision: tuple[int | None, int]

    def fit(self, found: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether arrays of these shapes by modality, (N, T, D) each, are of this kind."""
        return all(
            len(shape) == 3 and shape[1] == (steps or shape[1]) and shape[2] == features
            for shape, (steps, features) in ((found[modality], getattr(self, modality)) for modality in MODALITIES)
        )

    def __str__(self) -> str:
        parts = [_shape(modality, getattr(self, modality)) for modality in MODALITIES]
        return f"{self.name}: {', '.join(parts)}"


@attrs.frozen
class Packed:
    """One split without empty segments and values that are not finite.

    Attributes:
        text: Float32 features, (N, T_text, D_text), all finite.
        audio: As `text`.
        vision: As `text`.
        labels: Float32, (N,).
        ids: Names of the segments; their row numbers if the file has none.
        kind: Name of the `Shapes` that fit.
        dropped: Names of the segments that were left out because their text is all zeros.
        repaired: Values that were not finite and are 0 now, by modality.
    """

    text: Tensor
    audio: Tensor
    vision: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    kind: str
    dropped: tuple[str, ...] = ()
    repaired: Mapping[str, int] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def summary(self, split: str) -> str:
        """Return a line for the summary of the data."""
        notes = [f"{split}: {len(self):,} segments ({self.kind})"]
        if self.dropped:
            notes.append(f"{len(self.dropped):,} without text left out, such as {self.dropped[0]}")
        notes += [f"{count:,} {modality} values not finite, set to 0" for modality, count in self.repaired.items()]
        return "; ".join(notes)


def read_packed(
    path: Path, kinds: Sequence[Shapes], label_range: tuple[float, float], *, drop_empty: bool = True
) -> dict[str, Packed]:
    """Read a packed file.

    Segments whose text is all zeros are left out, as in MultiBench; their names are kept. Audio features of -inf (the
    logarithm of silence) become 0, and so does every other value that is not finite; they are counted.

    Args:
        path: The pickle file, see `load_pickle`.
        kinds: Kinds of files that are accepted; the first that fits counts.
        label_range: Smallest and largest label that may occur.
        drop_empty: Whether to leave out segments without text.

    Returns:
        The splits `train`, `val` and `test`.

    Raises:
        RecipeError: If the file is no such pickle, lacks a split or an array, has arrays of another kind or of unequal
            length, or labels that are out of range or not finite.
    """
    content = load_pickle(path)
    _check_keys(path, "", content, SPLITS.values())
    # Each raw split is released as soon as it is converted: these files fill gigabytes.
    return {
        ours: _read_split(path, name, content.pop(name), kinds, label_range, drop_empty)
        for ours, name in SPLITS.items()
    }


def _read_split(
    path: Path,
    split: str,
    content: dict[str, Any],
    kinds: Sequence[Shapes],
    label_range: tuple[float, float],
    drop_empty: bool,
) -> Packed:
    _check_keys(path, f" under {split}", content, (*MODALITIES, "labels"))
    arrays = {modality: _numbers(path, split, modality, content.pop(modality)) for modality in MODALITIES}
    kind = _kind(path, split, arrays, kinds)
    count = len(arrays["text"])
    labels = _labels(path, split, content["labels"], count, label_range)
    ids = _ids(path, split, content.get("id"), count)
    clean, repaired = {}, {}
    for modality in MODALITIES:
        clean[modality], bad = finite(arrays.pop(modality))
        if bad:
            repaired[modality] = bad
    keep = (
        torch.from_numpy(clean["text"]).ne(0).flatten(1).any(dim=1)
        if drop_empty
        else torch.ones(count, dtype=torch.bool)
    )
    tensors = {modality: torch.from_numpy(clean.pop(modality))[keep] for modality in MODALITIES}
    kept = keep.tolist()
    return Packed(
        **tensors,
        labels=torch.from_numpy(labels)[keep],
        ids=tuple(name for name, is_kept in zip(ids, kept, strict=True) if is_kept),
        kind=kind,
        dropped=tuple(name for name, is_kept in zip(ids, kept, strict=True) if not is_kept),
        repaired=repaired,
    )


def finite(values: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
    """Return writable float32 values with 0 in place of values that are not finite, and the number of these."""
    with np.errstate(over="ignore"):
        array = np.require(values, np.float32, "W")
    bad = ~np.isfinite(array)
    array[bad] = 0
    return array, int(bad.sum())


def check_range(path: Path, split: str, labels: NDArray[np.float32], label_range: tuple[float, float]) -> None:
    """Check the range of labels.

    Args:
        path: Their file.
        split: Their split.
        labels: Labels (N,).
        label_range: Smallest and largest label that may occur.

    Raises:
        RecipeError: If one is outside of the range or not finite.
    """
    low, high = label_range
    outside = ~((labels >= low) & (labels <= high))  # true for NaN
    if outside.any():
        row = int(outside.argmax())
        raise RecipeError(
            f"Labels in {path} should be from {low:g} to {high:g}",
            found=f"{labels[row]:g} in row {row} of {split}, and {int(outside.sum()) - 1} more",
            fix="put the file of this dataset there",
        )


def joined(parts: Sequence[Packed]) -> Packed:
    """Return the segments of one or more parts, in order."""
    first, *others = parts
    if not others:
        return first

    def all_of(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return Packed(
        text=all_of("text"),
        audio=all_of("audio"),
        vision=all_of("vision"),
        labels=all_of("labels"),
        ids=tuple(name for part in parts for name in part.ids),
        kind=first.kind,
    )


def _check_keys(path: Path, where: str, content: Any, expected: Any) -> None:
    wanted = tuple(expected)
    if not isinstance(content, dict) or not set(wanted) <= set(content):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise RecipeError(
            f"{path} should have the keys {', '.join(wanted)}{where}",
            found=str(found),
            fix="take the packed file of MulT or MultiBench",
        )


def _numbers(path: Path, split: str, name: str, values: Any) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:  # sequences of unequal lengths
        raise _not_numbers(path, split, name, str(error)) from error
    if array.dtype.kind not in "fiub":
        raise _not_numbers(path, split, name, f"dtype {array.dtype}")
    return array


def _not_numbers(path: Path, split: str, name: str, found: str) -> RecipeError:
    return RecipeError(
        f"{path} should hold an array of numbers under {split}, {name}",
        found=found,
        fix="take the packed file of MulT or MultiBench",
    )


def _kind(path: Path, split: str, arrays: Mapping[str, NDArray[Any]], kinds: Sequence[Shapes]) -> str:
    found = {modality: array.shape for modality, array in arrays.items()}
    counts = {shape[:1] for shape in found.values()}
    for kind in kinds:
        if kind.fit(found) and len(counts) == 1:
            return kind.name
    text = ", ".join(f"{modality} {shape}" for modality, shape in found.items())
    expected = "; or ".join(str(kind) for kind in kinds)
    raise RecipeError(
        f"{path} should hold, with equal N, {expected}", found=f"{text} in {split}", fix="take one of these files"
    )


def _labels(path: Path, split: str, values: Any, count: int, label_range: tuple[float, float]) -> NDArray[np.float32]:
    array = _numbers(path, split, "labels", values)
    if array.shape[:1] != (count,) or array.size != count:
        raise RecipeError(
            f"{path} should have one label per segment, ({count}, 1, 1)",
            found=f"{array.shape} in {split}",
            fix="take the packed file with one label, not with emotions too",
        )
    labels = array.reshape(count).astype(np.float32)
    check_range(path, split, labels, label_range)
    return labels


def _ids(path: Path, split: str, values: Any, count: int) -> tuple[str, ...]:
    if values is None:
        return tuple(f"row {row}" for row in range(count))
    if len(values) != count:
        raise RecipeError(f"{path} should have {count} ids in {split}", found=str(len(values)), fix="download it again")
    return tuple(_id(value) for value in values)


def _id(value: Any) -> str:
    """Decode an id: str or bytes, or an array such as [video, start, end]."""
    if isinstance(value, np.ndarray | list | tuple):
        return " ".join(_id(part) for part in np.asarray(value).reshape(-1).tolist())
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _shape(modality: str, size: tuple[int | None, int]) -> str:
    steps, features = size
    return f"{modality} (N, {'T' if steps is None else steps}, {features})"
