"""The packed files of CMU-MOSI that are about."""

from __future__ import annotations

from pathlib import Path

import attrs

from recipe_common.data.readers.packed_sequences import Packed, Shapes, read_packed
from recipe_common.data.samples.padding import left_aligned
from recipe_common.errors import RecipeError
from recipe_common.files import listing

LABELS = (-3.0, 3.0)


@attrs.frozen
class PackedFile:
    """A file of CMU-MOSI.

    Attributes:
        name: Of the file, as it is published.
        shapes: What it holds.
        as_multibench: Whether to do what MultiBench does with it: leave out segments without text, and move the zeros
            in front of the first word to the end.
    """

    name: str
    shapes: Shapes
    as_multibench: bool = False


FILES = {
    "noalign": PackedFile("mosi_data_noalign.pkl", Shapes("not aligned", (50, 300), (375, 5), (500, 20))),
    "aligned": PackedFile("mosi_data.pkl", Shapes("aligned by word", (50, 300), (50, 5), (50, 20))),
    "multibench": PackedFile("mosi_raw.pkl", Shapes("MultiBench", (50, 300), (50, 74), (50, 35)), as_multibench=True),
}
"""GloVe text with COVAREP audio and FACET vision, of MulT (Tsai et al., ACL 2019) and MultiBench (NeurIPS 2021)."""


def read_mosi(root: Path, kind: PackedFile) -> tuple[Path, dict[str, Packed]]:
    """Read the splits `train`, `val` and `test`.

    Args:
        root: The file, by whatever name, or the folder that holds it by its own.
        kind: Which one.

    Returns:
        The path of the file, and the splits.

    Raises:
        RecipeError: If the file is not there, or see `read_packed`.
    """
    path = root if root.is_file() else root / kind.name
    if not path.is_file():
        there = [f"{name} ({file.name})" for name, file in FILES.items() if (root / file.name).is_file()]
        fix = f"add --features {there[0].split()[0]}" if there else "put the file there"
        raise RecipeError(
            f"Expected {kind.name} in {root}. Found {', '.join(there) or listing(root)}. "
            f"Fix: {fix}, or point --data-root at the file itself."
        )
    splits = read_packed(path, (kind.shapes,), LABELS, drop_empty=kind.as_multibench)
    return path, {split: left_aligned(part) if kind.as_multibench else part for split, part in splits.items()}
