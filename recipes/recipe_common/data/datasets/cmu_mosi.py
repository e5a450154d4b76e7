"""Packed files of CMU-MOSI: the published versions of MulT, MultiBench and MMSA, and their reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recipe_common.data.datasets.packed_files import PackedFile, find_packed, read_variant
from recipe_common.data.readers.mmsa import TextStates
from recipe_common.data.readers.packed_parts import Shapes
from recipe_common.data.readers.packed_sequences import Packed
from recipe_common.data.samples.padding import left_aligned

LABELS = (-3.0, 3.0)
FILES = {
    "noalign": PackedFile("mosi_data_noalign.pkl", Shapes("not aligned", (50, 300), (375, 5), (500, 20))),
    "aligned": PackedFile("mosi_data.pkl", Shapes("aligned by word", (50, 300), (50, 5), (50, 20))),
    "multibench": PackedFile("mosi_raw.pkl", Shapes("MultiBench", (50, 300), (50, 74), (50, 35)), as_multibench=True),
    "mmsa_aligned": PackedFile(
        "aligned_50.pkl", Shapes("MMSA, aligned by token", (50, 768), (50, 5), (50, 20)), is_mmsa=True
    ),
    "mmsa_unaligned": PackedFile(
        "unaligned_50.pkl", Shapes("MMSA, not aligned", (50, 768), (None, 5), (None, 20)), is_mmsa=True
    ),
}
"""COVAREP audio and FACET vision, with GloVe text (MulT: Tsai et al., ACL 2019; MultiBench: Liang et al., NeurIPS 2021)
or BERT text (MMSA: Yu et al., AAAI 2021)."""


def read_mosi(
    root: Path, wanted: str, files: Mapping[str, PackedFile] = FILES, states: TextStates | None = None
) -> tuple[Path, dict[str, Packed]]:
    """Read the splits `train`, `val` and `test`.

    Args:
        root: The file under any name, or the folder that holds it under its own.
        wanted: Key of the file in `files`.
        files: All variants that are read.
        states: Function that computes the text features of a file of MMSA from its `text_bert`.

    Returns:
        The path of the file, and the splits.

    Raises:
        RecipeError: If the file is absent or of another variant, or see `read_packed` and `read_mmsa`.
    """
    path, file = find_packed(root, wanted, files), files[wanted]
    splits = read_variant(path, wanted, files, LABELS, drop_empty=file.as_multibench, states=states)
    return path, {split: left_aligned(part) if file.as_multibench else part for split, part in splits.items()}
