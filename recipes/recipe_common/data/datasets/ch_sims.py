"""Packed files of CH-SIMS and CH-SIMS v2(s), and their reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recipe_common.data.datasets.packed_files import PackedFile, find_packed, read_variant
from recipe_common.data.readers.mmsa import OWN_LABELS, TextStates
from recipe_common.data.readers.packed_parts import Shapes
from recipe_common.data.readers.packed_sequences import Packed

LABEL_RANGE = (-1.0, 1.0)
FILES = {
    "v1": PackedFile("unaligned_39.pkl", Shapes("CH-SIMS", (None, 768), (None, 33), (None, 709)), is_mmsa=True),
    "v2": PackedFile("ch-simsv2s.pkl", Shapes("CH-SIMS v2(s)", (None, 768), (None, 25), (None, 177)), is_mmsa=True),
}
"""BERT text of Chinese; both versions have audio and vision features of their own."""


def read_sims(
    root: Path, wanted: str, files: Mapping[str, PackedFile] = FILES, states: TextStates | None = None
) -> tuple[Path, dict[str, Packed]]:
    """Read the splits `train`, `val` and `test`, with labels of each modality where the file has them.

    Args:
        root: The file under any name, or the folder that holds it under its own.
        wanted: Key of the file in `files`.
        files: All variants that are read.
        states: Function that computes the text features from `text_bert`.

    Returns:
        The path of the file, and the splits.

    Raises:
        RecipeError: If the file is absent or of another variant, or see `read_mmsa`.
    """
    path = find_packed(root, wanted, files)
    return path, read_variant(path, wanted, files, LABEL_RANGE, drop_empty=False, states=states)


def missing_labels(splits: Mapping[str, Packed]) -> tuple[str, ...]:
    """Return the keys of labels of single modalities that a split lacks."""
    return tuple(
        key for modality, key in OWN_LABELS.items() if any(modality not in part.own_labels for part in splits.values())
    )
