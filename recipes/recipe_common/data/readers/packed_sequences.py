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

from recipe_common.data.readers.packed_parts import MODALITIES, SPLITS, PackedPart, Shapes, finite
from recipe_common.data.readers.pickles import load_pickle

ORIGIN = "MulT or MultiBench"


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
        notes: Further notes for the summary.
        own_labels: Labels of what each modality alone expresses, float32 (N,), by modality; empty if there are none.
    """

    text: Tensor
    audio: Tensor
    vision: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    kind: str
    dropped: tuple[str, ...] = ()
    repaired: Mapping[str, int] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()
    own_labels: Mapping[str, Tensor] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def summary(self, split: str) -> str:
        """Return a line for the summary of the data."""
        notes = [f"{split}: {len(self):,} segments ({self.kind})"]
        if self.dropped:
            notes.append(f"{len(self.dropped):,} without text left out, such as {self.dropped[0]}")
        notes += [f"{count:,} {modality} values not finite, set to 0" for modality, count in self.repaired.items()]
        return "; ".join([*notes, *self.notes])


def read_packed(
    path: Path,
    kinds: Sequence[Shapes],
    label_range: tuple[float, float],
    *,
    drop_empty: bool = True,
    label_columns: Sequence[int] = (1,),
    content: Any = None,
) -> dict[str, Packed]:
    """Read a packed file.

    Segments whose text is all zeros are left out, as in MultiBench; their names are kept. Audio features of -inf (the
    logarithm of silence) become 0, and so does every other value that is not finite; they are counted.

    Args:
        path: The pickle file, see `load_pickle`.
        kinds: Kinds of files that are accepted; the first that fits counts.
        label_range: Smallest and largest label that may occur.
        drop_empty: Whether to leave out segments without text.
        label_columns: Numbers of labels of a segment that are accepted; the first of several counts.
        content: Content of the file, if it is loaded; its splits are removed.

    Returns:
        The splits `train`, `val` and `test`.

    Raises:
        RecipeError: If the file is no such pickle, lacks a split or an array, has arrays of another kind or of unequal
            length, or labels that are out of range or not finite.
    """
    content = load_pickle(path) if content is None else content
    PackedPart(path, "", ORIGIN).require(content, SPLITS.values())
    # Each raw split is released as soon as it is converted: these files fill gigabytes.
    return {
        ours: _read_split(
            PackedPart(path, name, ORIGIN), content.pop(name), kinds, label_range, drop_empty, label_columns
        )
        for ours, name in SPLITS.items()
    }


def _read_split(
    part: PackedPart,
    content: dict[str, Any],
    kinds: Sequence[Shapes],
    label_range: tuple[float, float],
    drop_empty: bool,
    label_columns: Sequence[int],
) -> Packed:
    part.require(content, (*MODALITIES, "labels"))
    arrays = {modality: part.numbers(modality, content.pop(modality)) for modality in MODALITIES}
    kind = part.kind(arrays, kinds)
    count = len(arrays["text"])
    labels = part.labels("labels", content["labels"], count, label_range, label_columns)
    ids = part.ids(content.get("id"), count)
    return packed(arrays, labels, ids, kind.name, drop_empty=drop_empty)


def packed(
    arrays: dict[str, NDArray[Any]],
    labels: NDArray[np.float32],
    ids: tuple[str, ...],
    kind: str,
    *,
    drop_empty: bool,
    own_labels: Mapping[str, NDArray[np.float32]] | None = None,
) -> Packed:
    """Return a split of finite values.

    Args:
        arrays: Features (N, T, D) by modality; the entries are removed.
        labels: Labels (N,).
        ids: Names of the segments.
        kind: Name of the kind of file.
        drop_empty: Whether to leave out segments whose text is all zeros.
        own_labels: Labels (N,) of what each modality alone expresses, by modality.
    """
    clean, repaired = {}, {}
    for modality in MODALITIES:
        clean[modality], bad = finite(arrays.pop(modality))
        if bad:
            repaired[modality] = bad
    keep = (
        torch.from_numpy(clean["text"]).ne(0).flatten(1).any(dim=1)
        if drop_empty
        else torch.ones(len(labels), dtype=torch.bool)
    )
    tensors = {modality: torch.from_numpy(clean.pop(modality))[keep] for modality in MODALITIES}
    kept = keep.tolist()
    return Packed(
        text=tensors["text"],
        audio=tensors["audio"],
        vision=tensors["vision"],
        labels=torch.from_numpy(labels)[keep],
        ids=tuple(name for name, is_kept in zip(ids, kept, strict=True) if is_kept),
        kind=kind,
        dropped=tuple(name for name, is_kept in zip(ids, kept, strict=True) if not is_kept),
        repaired=repaired,
        own_labels={modality: torch.from_numpy(values)[keep] for modality, values in (own_labels or {}).items()},
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
