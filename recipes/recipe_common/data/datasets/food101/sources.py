"""Sources of samples for pictures and titles: features of frozen networks, or pixels and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from recipe_common.data.cache.store import Entry
from recipe_common.data.datasets.food101.lists import clean_title, picture_path, title
from recipe_common.data.features.pictures import picture_entry
from recipe_common.data.features.store import find_store
from recipe_common.data.features.texts import check_length, text_entry, tokenized
from recipe_common.data.readers.frames import IMAGENET_MEAN, IMAGENET_STD, PICTURE_HEADER, read_image
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sources import Source
from recipe_common.errors import require
from recipe_common.models.pretrained import load_tokenizer, read_config


@attrs.frozen(slots=False)
class PictureTransform:
    """Resizes a whole picture and normalises it as ImageNet; in training it is also rotated and flipped at random.

    Source: code of BalanceBenchmark.

    Args:
        size: Height and width in pixels.
        angle: Largest rotation in degrees.
    """

    size: int = 224
    angle: float = 30.0

    def __call__(self, path: Path, *, seed: int | None = None) -> Tensor:
        """Read a picture.

        Args:
            path: File of the picture.
            seed: Seed of the random choices of training; None stands for evaluation.

        Returns:
            float32 of shape (3, size, size).

        Raises:
            RecipeError: If it cannot be decoded.
        """
        picture = read_image(path)
        if seed is None:
            return self._evaluation(picture)
        # torchvision draws from torch's CPU generator, whose state is restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._training(picture)

    @cached_property
    def _training(self) -> Any:
        v2 = require("torchvision.transforms.v2")
        return v2.Compose([v2.RandomRotation(self.angle), v2.RandomHorizontalFlip(), self._evaluation])

    @cached_property
    def _evaluation(self) -> Any:
        v2 = require("torchvision.transforms.v2")
        steps = [v2.Resize((self.size, self.size)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        return v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


def feature_sources(
    folder: Path, root: Path, settings: Mapping[str, Mapping[str, Any]], names: Mapping[str, str | None], command: str
) -> tuple[Source, ...]:
    """Return the features of pictures and of titles as sources, (T, D) each; `where` is the folder of a store.

    Args:
        folder: Folder of all stores, as `prepare_features` writes it.
        root: Folder of the dataset.
        settings: Settings of the network that made the features, by modality, `image` and `text`.
        names: Folder in `folder` by modality, or None for the only one with these settings.
        command: Command that makes the features, for a message.

    Raises:
        RecipeError: See `find_store`.
    """
    entries: dict[str, Callable[[Row], Entry]] = {"image": partial(picture_entry_of, root), "text": text_entry_of}
    stores = {each: find_store(folder, each, settings[each], names[each], command) for each in entries}
    return tuple(stores[modality].source(modality, entries[modality]) for modality in entries)


def picture_entry_of(root: Path, row: Row) -> Entry:
    """Return the picture of a row as an entry to be encoded."""
    return picture_entry(root, picture_path(row))


def text_entry_of(row: Row) -> Entry:
    """Return the title of a row as an entry to be encoded."""
    return text_entry(title(row))


def picture_source(root: Path, transform: PictureTransform) -> Source:
    """Return the pictures under `root` as a source, (3, size, size) each."""
    return Source(
        "image", "jpg file", str(root), partial(_find_picture, root), transform, read_image, header=PICTURE_HEADER
    )


def token_source(folder: Path, length: int) -> Source:
    """Return the titles as a source: token ids and mask, 1 where there is a token, int64 of shape (2, length).

    Titles are cleaned by `clean_title`.

    Args:
        folder: Folder of a text encoder of the transformers library.
        length: Number of tokens that are kept, those at the beginning and end included.

    Raises:
        RecipeError: If there is no tokenizer in `folder`, or if the encoder has fewer positions.
    """
    check_length(length, read_config(folder).max_position_embeddings)
    read = partial(_read_tokens, load_tokenizer(folder), length)
    return Source("text", "title", "the lists", title, read, read)


def _find_picture(root: Path, row: Row) -> Path | None:
    path = root / picture_path(row)
    return path if path.is_file() else None


def _read_tokens(tokenizer: Any, length: int, text: str, *, seed: int | None = None) -> Tensor:
    tokens = tokenized(tokenizer, [clean_title(text)], length)
    return torch.cat([tokens["input_ids"], tokens["attention_mask"]])
