"""Command that encodes listed pictures and their titles with frozen networks: `prepare` of UPMC Food-101."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch

from recipe_common.arguments import positive_int
from recipe_common.data.cache.store import Entry
from recipe_common.data.datasets.food101.lists import FORMATS, TitleLists, read_titles
from recipe_common.data.datasets.food101.sources import picture_entry_of, text_entry_of
from recipe_common.data.features.networks import KEEP
from recipe_common.data.features.pictures import FrozenPictures
from recipe_common.data.features.store import prepare_features
from recipe_common.data.features.texts import FrozenTexts
from recipe_common.data.prepare.engine import Preparation, parse_preparation, verify
from recipe_common.data.readers.non_files import check_most, non_files
from recipe_common.models.pretrained import local_folder
from recipe_common.settings.declaration import flag

MOST_WORKERS = 8
"""Default number of processes at most, since each has a copy of a network."""


@attrs.frozen(kw_only=True)
class EncodeSettings(Preparation):
    """Settings of `prepare`: lists, networks, and the form of their features."""

    features: Path | None = flag(None, "folder of the features; default: DATA_ROOT/features", metavar="DIR")
    image_model: str | None = flag(None, "folder, or cached name; default: %(default)s", metavar="DIR")
    text_model: str | None = flag(None, "folder, or cached name; default: %(default)s", metavar="DIR")
    lists: str = flag(
        "auto",
        "lists to read where there are several; auto: the first of these that is there",
        choices=("auto", *FORMATS),
    )
    keep: str = flag("all", "hidden states of all tokens, or of the first one alone", choices=KEEP)
    normalize: bool = flag(
        True,
        "pixels normalised as the network expects (the default), or from 0 to 1 as in the code of Guo et al. "
        "(NeurIPS 2024)",
    )
    text_length: int = flag(50, "titles are cut or padded to this length", number=positive_int, metavar="TOKENS")
    device: str = flag("auto", "cpu, cuda, cuda:1, ...; default: CUDA if there")
    batch_size: int = flag(64, "samples per pass of each process", number=positive_int)


def encode_main(prog: str, arguments: list[str], classes: Sequence[str], image_model: str, text_model: str) -> int:
    """Encode the pictures and titles of a dataset in the layout of UPMC Food-101.

    Args:
        prog: Name of the command.
        arguments: Arguments of the command line.
        classes: Class names that may occur in the lists.
        image_model: Default network for pictures.
        text_model: Default network for titles.

    Returns:
        The exit status: 0, or 1 if pictures could not be read.
    """
    settings = parse_preparation(
        EncodeSettings,
        prog,
        "Features of pictures and titles from frozen networks.",
        arguments,
        workers=min(MOST_WORKERS, os.cpu_count() or 1),
        image_model=image_model,
        text_model=text_model,
    )
    folder = settings.features or settings.data_root / "features"
    if settings.verify:
        return verify(folder, workers=settings.workers)
    lists = read_titles(settings.data_root, classes, settings.lists)
    image = local_folder(settings.image_model or image_model, "--image-model", image_model)
    text = local_folder(settings.text_model or text_model, "--text-model", text_model)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
    networks = {
        FrozenPictures(image, settings.keep, device, settings.batch_size, normalize=settings.normalize): _pictures(
            lists
        ),
        FrozenTexts(text, settings.keep, device, settings.batch_size, length=settings.text_length): [
            text_entry_of(row) for row in lists.rows
        ],
    }
    return prepare_features(folder, networks, workers=settings.workers)


def _pictures(lists: TitleLists) -> list[Entry]:
    entries = [picture_entry_of(lists.root, row) for row in lists.rows]
    present = [entry for entry in entries if entry.stamp is not None]
    print(f"{len(present):,} of {len(entries):,} listed pictures are in {lists.root}")
    paths = [Path(entry.content) for entry in present]
    for line in check_most(non_files((path,) for path in paths), len(paths), "pictures", lists.root):
        print(line)
    return present
