"""Packed files of sequence features: the variants of one dataset, found by name and told apart by their content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from recipe_common.data.features.tokens import TokenStates
from recipe_common.data.readers.mmsa import LABELS, TextStates, read_mmsa
from recipe_common.data.readers.packed_parts import MODALITIES, Shapes
from recipe_common.data.readers.packed_sequences import Packed, read_packed
from recipe_common.data.readers.pickles import load_pickle
from recipe_common.errors import RecipeError
from recipe_common.files import listing
from recipe_common.models.pretrained import local_folder

SUBFOLDER = "Processed"
"""Folder of the packed files in the downloads of MMSA, beside `Raw`."""
FOREIGN = {
    "*.csd": "computational sequences of the CMU SDK, without padding and splits",
    "*.hdf5": "sequences by segment, without splits",
    "mosi.pkl": "words and features of BERT_multimodal_transformer",
    "mosei.pkl": "words and features of BERT_multimodal_transformer",
    **dict.fromkeys(("train.pkl", "dev.pkl", "test.pkl"), "words and features of one part, as those of MISA"),
    "embedding_and_mapping.pt": "word vectors for the lists of words and features of MISA",
    "ur_funny.pkl": "words and features of HKT",
    "ch-simsv2u.pkl": "segments without labels",
    "label.csv": "labels without features",
}
"""Content of other files of these datasets by pattern."""
SYNTHETIC_KEY = "synthetic"
"""Key of the packed file of a small synthetic set, which no value of `--features` is."""


@attrs.frozen
class PackedFile:
    """A packed file, as it is published.

    Attributes:
        name: File name.
        shapes: Shapes of its arrays.
        as_multibench: Whether segments without text are left out, and zeros in front of the first word moved to the
            end, as in MultiBench.
        is_mmsa: Whether it has the keys of MMSA.
        label_columns: Numbers of labels of a segment that are accepted; the first of several counts.
    """

    name: str
    shapes: Shapes
    as_multibench: bool = False
    is_mmsa: bool = False
    label_columns: tuple[int, ...] = (1,)

    def path(self, root: Path) -> Path | None:
        """Return the path of the file in a folder or its subfolder `Processed`; None if it is in neither."""
        paths = (root / self.name, root / SUBFOLDER / self.name)
        return next((path for path in paths if path.is_file()), None)

    def describes(self, split: Any) -> bool:
        """Return whether a split has the keys and shapes of this file."""
        if not isinstance(split, dict) or self.is_mmsa != (LABELS in split):
            return False
        is_free = self.shapes.audio[0] is None
        shapes = {modality: getattr(split.get(modality), "shape", ()) for modality in MODALITIES}
        return self.shapes.fit(shapes) and (not is_free or "audio_lengths" in split)


def find_packed(root: Path, wanted: str, files: Mapping[str, PackedFile], fix: str | None = None) -> Path:
    """Return the path of a packed file.

    Args:
        root: The file under any name, or the folder that holds it under its own.
        wanted: Key of the file in `files`, a value of `--features`.
        files: All variants that are read.
        fix: Remedy for the message if there is no file; default: the flag of another variant that is there.

    Raises:
        RecipeError: If it is absent.
    """
    path = root if root.is_file() else files[wanted].path(root)
    if path is not None:
        return path
    present = [f"{name} ({file.name})" for name, file in files.items() if file.path(root)]
    if fix is None and present:
        fix = f"add --features {present[0].split()[0]}"
    foreign = foreign_files(root)
    if fix is None and foreign:
        names = ", ".join(dict.fromkeys(file.name for file in files.values()))
        fix = f"download one of {names}, or point --data-root at it if it has another name"
    raise RecipeError(
        f"{root} should hold {files[wanted].name}",
        found=", ".join(present) or "; ".join([listing(root), *foreign]),
        fix=fix or "put the file there, or point --data-root at it if it has another name",
    )


def foreign_files(root: Path) -> list[str]:
    """Return a note on each kind of file in a folder that the recipes of sentiment and humour do not read."""
    names: dict[str, list[str]] = {}
    for pattern, content in FOREIGN.items():
        if found := sorted(root.glob(pattern)):
            names.setdefault(content, []).append(found[0].name)
    return [f"{', '.join(each)} {'has' if len(each) == 1 else 'have'} {content}" for content, each in names.items()]


def text_states(model: str | None, wanted: str, file: PackedFile, device: str, published: str) -> TextStates | None:
    """Return the function that computes text features by a frozen encoder; None without one.

    Args:
        model: The value of `--text-model`: a folder, or a name in the Hugging Face cache.
        wanted: The value of `--features`, or `SYNTHETIC_KEY`, for the message.
        file: That file.
        device: The value of `--device`.
        published: Public name of the encoder whose token ids are in the file, for the message.

    Raises:
        RecipeError: If the encoder is absent, or if the file has no token ids.
    """
    if model is None:
        return None
    if not file.is_mmsa:
        raise RecipeError(
            "`--text-model` should go with a file of MMSA, which has token ids",
            found="the synthetic set" if wanted == SYNTHETIC_KEY else f"--features {wanted}",
            fix="add --data-root, or leave --text-model out"
            if wanted == SYNTHETIC_KEY
            else "add --features mmsa_aligned or mmsa_unaligned, or leave --text-model out",
        )
    folder = local_folder(model, "--text-model", published)
    is_auto = device == "auto"
    return TokenStates(folder, ("cuda" if torch.cuda.is_available() else "cpu") if is_auto else device)


def read_variant(
    path: Path,
    wanted: str,
    files: Mapping[str, PackedFile],
    label_range: tuple[float, float],
    *,
    drop_empty: bool,
    states: TextStates | None = None,
) -> dict[str, Packed]:
    """Read a packed file.

    Args:
        path: The file.
        wanted: Key of the file in `files`, a value of `--features`.
        files: All variants that are read.
        label_range: Smallest and largest label that may occur.
        drop_empty: Whether to leave out segments without text.
        states: Function that computes the text features of a file of MMSA from its `text_bert`.

    Returns:
        The splits `train`, `val` and `test`.

    Raises:
        RecipeError: If the content is that of another variant, whose flag is in the message, or see `read_packed` and
            `read_mmsa`.
    """
    content = load_pickle(path)
    file = files[wanted]
    train = content.get("train") if isinstance(content, dict) else None
    fitting = [name for name, other in files.items() if other.describes(train)]
    if fitting and wanted not in fitting:
        raise RecipeError(
            f"{path} should hold {file.shapes}",
            found=f"{files[fitting[0]].shapes}",
            fix=f"add --features {fitting[0]}",
        )
    if file.is_mmsa:
        return read_mmsa(path, content, file.shapes, label_range, drop_empty=drop_empty, states=states)
    return read_packed(
        path,
        (file.shapes,),
        label_range,
        drop_empty=drop_empty,
        label_columns=file.label_columns,
        content=content,
    )
