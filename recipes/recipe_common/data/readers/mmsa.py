"""Reader of the packed files of MMSA and Self-MM (CMU-MOSI, CMU-MOSEI, CH-SIMS).

{"train", "valid", "test"} -> {"text", "audio", "vision", "text_bert", "regression_labels", "id"}, in files that are not
aligned `audio_lengths` and `vision_lengths` too, and further keys that are not read. N segments, L tokens, T steps in
time, D features; shorter segments are filled up at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe_common.data.readers.packed_parts import MODALITIES, SPLITS, PackedPart, Shapes
from recipe_common.data.readers.packed_sequences import Packed, packed
from recipe_common.errors import RecipeError

ORIGIN = "MMSA"
TOKENS, LABELS = "text_bert", "regression_labels"
OWN_LABELS = {modality: f"{LABELS}_{letter}" for modality, letter in zip(MODALITIES, "TAV", strict=True)}
"""Keys of the labels of what each modality alone expresses, in files of CH-SIMS."""
CHUNK = 1024
"""Segments that are compared at a time, to bound the memory."""

TextStates = Callable[[Tensor], Tensor]
"""Function from token ids, mask and types, int64 (n, 3, L), to text features, float32 (n, L, D)."""


def read_mmsa(
    path: Path,
    content: Any,
    kind: Shapes,
    label_range: tuple[float, float],
    *,
    drop_empty: bool = False,
    states: TextStates | None = None,
) -> dict[str, Packed]:
    """Read a packed file of MMSA.

    Steps of padding become 0 in all modalities: in text those that the mask in `text_bert` leaves out, and in audio and
    vision those after the length of the segment, where the kind has any number of steps. A length longer than the
    array, as that of a segment that was cut, is its whole length. The script of MMSA that computes lengths
    (`getLengths.py`) counts the steps up to the first that is zero, which is 0 or 1 where the zeros are in front: such
    a length is not that of the segment, and all its steps that are not zero are kept. These are counted. A mask of
    another number of tokens than the text has steps is not applied, which a note says.

    Args:
        path: Name of the file, for messages.
        content: Content of the file; its splits are removed.
        kind: Shapes of its arrays.
        label_range: Smallest and largest label that may occur.
        drop_empty: Whether to leave out segments whose text is all zeros.
        states: Function that computes the text features from `text_bert`; None: those in the file.

    Returns:
        The splits `train`, `val` and `test`.

    Raises:
        RecipeError: If the file lacks a split or an array, has arrays of another kind or of unequal N, or labels that
            are out of range or not finite.
    """
    PackedPart(path, "", ORIGIN).require(content, SPLITS.values())
    # Each raw split is released as soon as it is converted: these files fill gigabytes.
    return {
        ours: _read_split(PackedPart(path, name, ORIGIN), content.pop(name), kind, label_range, drop_empty, states)
        for ours, name in SPLITS.items()
    }


def _read_split(
    part: PackedPart,
    content: dict[str, Any],
    kind: Shapes,
    label_range: tuple[float, float],
    drop_empty: bool,
    states: TextStates | None,
) -> Packed:
    needed = (TOKENS, *MODALITIES[1:]) if states else MODALITIES
    part.require(content, (*needed, LABELS))
    tokens = _tokens(part, content.get(TOKENS))
    arrays: dict[str, NDArray[Any]] = {}
    if states is None:
        arrays["text"] = part.numbers("text", content.pop("text"))
    else:
        assert tokens is not None
        arrays["text"] = states(tokens).numpy()
        kind = attrs.evolve(kind, text=arrays["text"].shape[1:])
    arrays |= {modality: part.numbers(modality, content.pop(modality)) for modality in MODALITIES[1:]}
    kind = part.kind(arrays, (kind,))
    count = len(arrays["text"])
    ids = part.ids(content.get("id"), count)
    labels = part.labels(LABELS, content[LABELS], count, label_range)
    own = {
        modality: part.labels(key, content[key], count, label_range)
        for modality, key in OWN_LABELS.items()
        if key in content
    }
    notes = _cut_padding(part, content, kind, arrays, tokens)
    read = packed(arrays, labels, ids, kind.name, drop_empty=drop_empty, own_labels=own)
    return attrs.evolve(read, notes=notes)


def _tokens(part: PackedPart, values: Any) -> Tensor | None:
    """Return ids, mask and types, int64 (N, 3, L); files of MMSA's script DataPre.py have them as (N, L, 3)."""
    if values is None:
        return None
    array = part.numbers(TOKENS, values)
    if array.ndim == 3 and array.shape[1] != 3 and array.shape[2] == 3:
        array = array.transpose(0, 2, 1)
    is_right = array.ndim == 3 and array.shape[1] == 3
    if not is_right or not np.isfinite(array).all() or (array < 0).any():
        raise RecipeError(
            f"{part.path} should hold token ids, mask and types (N, 3, L) under {part.split}, {TOKENS}",
            found="some that are negative or not finite" if is_right else str(array.shape),
            fix=f"take the packed file of {ORIGIN}",
        )
    return torch.from_numpy(np.ascontiguousarray(array)).long()


def _cut_padding(
    part: PackedPart,
    content: Mapping[str, Any],
    kind: Shapes,
    arrays: dict[str, NDArray[Any]],
    tokens: Tensor | None,
) -> tuple[str, ...]:
    """Set the steps of padding to 0 and return notes on lengths that are not those of their segments."""
    notes = []
    if tokens is not None:
        _check_count(part, tokens, len(arrays["text"]))
        steps = arrays["text"].shape[1]
        if tokens.shape[2] == steps:
            # Not a product: infinite values of padding would become NaN.
            arrays["text"] = np.where(tokens[:, 1, :, None].ne(0).numpy(), arrays["text"], 0)
        else:
            notes.append(f"padding of text is kept: {TOKENS} has {tokens.shape[2]} tokens, and text {steps} steps")
    for modality in MODALITIES[1:]:
        key = f"{modality}_lengths"
        if getattr(kind, modality)[0] is None and key in content:
            lengths = _lengths(part, key, content[key], arrays[modality].shape)
            arrays[modality], late = _cut(arrays[modality], lengths)
            if late:
                notes.append(f"{late:,} {modality} lengths cover leading zeros only and are not applied")
    return tuple(notes)


def _check_count(part: PackedPart, tokens: Tensor, count: int) -> None:
    if len(tokens) != count:
        raise RecipeError(
            f"{part.path} should hold {count:,} segments under {part.split}, {TOKENS}, as many as under text",
            found=f"{len(tokens):,}",
            fix="download it again",
        )


def _lengths(part: PackedPart, key: str, values: Any, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return numbers of steps (N,) for arrays of a shape (N, T, D), at most T."""
    count, steps, _ = shape
    array = part.numbers(key, values)
    if array.size != count or array.shape[:1] != (count,) or not np.isfinite(array).all() or (array < 0).any():
        raise RecipeError(
            f"{part.path} should hold {count:,} numbers of steps under {part.split}, {key}",
            found=f"shape {array.shape}" if array.size != count else "some that are negative or not finite",
            fix=f"download it again; without {key}, steps of zeros count as padding",
        )
    # Numbers beyond int64 would become negative ones.
    return np.minimum(array.reshape(count), steps).astype(np.int64)


def _cut(values: NDArray[Any], lengths: NDArray[np.int64]) -> tuple[NDArray[Any], int]:
    """Return values (N, T, D) with zeros after `lengths` (N,) steps, and the number of lengths that do not count."""
    steps = np.arange(values.shape[1])
    values, late = np.require(values, requirements="W"), 0
    for start in range(0, len(values), CHUNK):
        rows = values[start : start + CHUNK]
        is_inside = steps < lengths[start : start + CHUNK, None]
        has_content = (rows != 0).any(axis=2)
        is_late = ~(has_content & is_inside).any(axis=1) & has_content.any(axis=1)
        late += int(is_late.sum())
        rows[~is_inside & ~is_late[:, None]] = 0
    return values, late
