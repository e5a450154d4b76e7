"""The command that encodes listed pictures and their titles with frozen networks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from recipe_common.arguments import positive_int
from recipe_common.data.cache.store import Entry
from recipe_common.data.datasets.food101.lists import FORMATS, TitleLists, read_titles
from recipe_common.data.datasets.food101.sources import picture_entry_of, text_entry_of
from recipe_common.data.features.networks import KEEP
from recipe_common.data.features.pictures import FrozenPictures
from recipe_common.data.features.store import prepare_features
from recipe_common.data.features.texts import FrozenTexts
from recipe_common.data.prepare.engine import prepare_parser, verify
from recipe_common.models.pretrained import local_folder

MOST_WORKERS = 8
"""Each has a copy of a network."""


def encode_main(prog: str, arguments: list[str], classes: Sequence[str], image_model: str, text_model: str) -> int:
    """Encode the pictures and titles of a dataset in the layout of UPMC Food-101.

    Args:
        prog: Name of the command.
        arguments: Of the command line.
        classes: Class names that may occur in the lists.
        image_model: Name of the network that the paper takes for pictures, tried if none is given.
        text_model: Likewise for titles.

    Returns:
        The exit status: 0, or 1 if pictures could not be read.
    """
    args = _parser(prog, image_model, text_model).parse_args(arguments)
    folder = args.features or args.data_root / "features"
    if args.verify:
        return verify(folder, workers=args.workers)
    lists = read_titles(args.data_root, classes, args.lists)
    image = local_folder(args.image_model, "--image-model", image_model)
    text = local_folder(args.text_model, "--text-model", text_model)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    networks = {
        FrozenPictures(image, args.keep, device, args.batch_size, normalize=args.normalize): _pictures(lists),
        FrozenTexts(text, args.keep, device, args.batch_size, length=args.text_length): [
            text_entry_of(row) for row in lists.rows
        ],
    }
    return prepare_features(folder, networks, workers=args.workers)


def _parser(prog: str, image_model: str, text_model: str) -> argparse.ArgumentParser:
    parser = prepare_parser(prog, "Features of pictures and titles from frozen networks.")
    parser.set_defaults(workers=min(MOST_WORKERS, os.cpu_count() or 1))
    add = parser.add_argument
    add("--features", type=Path, metavar="DIR", help="where they go; default: DATA_ROOT/features")
    add("--image-model", default=image_model, metavar="DIR", help=f"folder, or cached name; default: {image_model}")
    add("--text-model", default=text_model, metavar="DIR", help=f"folder, or cached name; default: {text_model}")
    add("--lists", choices=("auto", *FORMATS), default="auto", help="which lists are read if there are several")
    add("--keep", choices=KEEP, default="all", help="hidden states of all tokens, or of the first one alone")
    add(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="pixels normalised as the network expects (the default), or from 0 to 1 as in CGGM",
    )
    add("--text-length", type=positive_int, default=50, metavar="TOKENS", help="titles are cut or padded to this")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: CUDA if there")
    add("--batch-size", type=positive_int, default=64, help="samples per pass of each process")
    return parser


def _pictures(lists: TitleLists) -> list[Entry]:
    entries = [picture_entry_of(lists.root, row) for row in lists.rows]
    there = [entry for entry in entries if entry.stamp is not None]
    print(f"{len(there):,} of {len(entries):,} listed pictures are in {lists.root}")
    return there
