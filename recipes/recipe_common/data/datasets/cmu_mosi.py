"""Packed files of CMU-MOSI: the published versions of MulT and MultiBench, and their reader."""

from __future__ import annotations

from pathlib import Path

import attrs

from recipe_common.data.readers.packed_parts import Shapes
from recipe_common.data.readers.packed_sequences import Packed, read_packed
from recipe_common.data.samples.padding import left_aligned
from recipe_common.errors import RecipeError
from recipe_common.files import listing

LABELS = (-3.0, 3.0)


@attrs.frozen
class PackedFile:
    """A packed file of CMU-MOSI.

    Attributes:
        name: File name, as it is published.
        shapes: Shapes of its arrays.
        as_multibench: Whether segments without text are left out, and zeros in front of the first word moved to the
            end, as in MultiBench.
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
        root: The file under any name, or the folder that holds it under its own.
        kind: Name and content of the file.

    Returns:
        The path of the file, and the splits.

    Raises:
        RecipeError: If the file is absent, or see `read_packed`.
    """
    path = root if root.is_file() else root / kind.name
    if not path.is_file():
        present = [f"{name} ({file.name})" for name, file in FILES.items() if (root / file.name).is_file()]
        fix = f"add --features {present[0].split()[0]}" if present else "put the file there"
        raise RecipeError(
            f"{root} should hold {kind.name}",
            found=", ".join(present) or listing(root),
            fix=f"{fix}, or point --data-root at the file itself",
        )
    splits = read_packed(path, (kind.shapes,), LABELS, drop_empty=kind.as_multibench)
    return path, {split: left_aligned(part) if kind.as_multibench else part for split, part in splits.items()}
