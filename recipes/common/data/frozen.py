"""What frozen networks of the transformers library make of pictures and texts: n samples, T tokens, D features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from common.data.frames import read_image
from common.errors import RecipeError, message, require
from common.models.pretrained import identity, load_network, load_tokenizer, read_config

KEEP = ("all", "cls")
SHORTEST = 3
"""Tokens of a text: one at its beginning, one at its end, and a word."""
VERSION = 1
"""To be raised when the same network and settings give other features."""


@attrs.frozen
class Entry:
    """A sample to encode.

    Attributes:
        key: Tells it from all others: path of a picture relative to the dataset, checksum of a text.
        stamp: Size of the picture in bytes, by which a replaced one is noticed; None: not known.
        content: Path of the picture, or the text.
    """

    key: str
    stamp: int | None
    content: str


def picture_entry(root: Path, name: str) -> Entry:
    """Return the entry of the picture `root / name`, which need not exist."""
    path = root / name
    return Entry(name, path.stat().st_size if path.is_file() else None, str(path))


def text_entry(text: str) -> Entry:
    """Return the entry of a text; equal texts have equal entries."""
    return Entry(hashlib.sha256(text.encode()).hexdigest()[:32], 0, text)


@attrs.frozen(slots=False)
class FrozenNetwork:
    """A network of the transformers library that encodes samples and is not trained.

    Args:
        folder: Its files, as `save_pretrained` writes them.
        keep: `all` tokens, or `cls`: the first one alone.
        device: Where it runs, such as `cuda`.
        batch_size: Samples per pass.
    """

    folder: Path
    keep: str = attrs.field(default="all", validator=attrs.validators.in_(KEEP))
    device: str = "cpu"
    batch_size: int = 64

    modality = ""

    @property
    def settings(self) -> dict[str, Any]:
        """What a person chooses, and finds features by."""
        raise NotImplementedError

    @property
    def transform(self) -> dict[str, Any]:
        """What else the features depend on, besides the network."""
        raise NotImplementedError

    def inputs(self, contents: Sequence[str]) -> dict[str, Tensor]:
        """Return the arguments of the network for some samples.

        Raises:
            RecipeError: If a sample cannot be read.
        """
        raise NotImplementedError

    def blank(self) -> dict[str, Tensor]:
        """Return the arguments of the network for a sample without content."""
        raise NotImplementedError

    @cached_property
    def spec(self) -> dict[str, Any]:
        """All that the features depend on, ready for JSON."""
        return {
            "version": VERSION,
            "modality": self.modality,
            "settings": self.settings,
            "transform": self.transform,
            "network_sha256": identity(self.folder),
        }

    @property
    def store_name(self) -> str:
        """Name of the folder of its features; the name of the network's folder plays no part."""
        digest = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()
        return f"{self.modality}-{digest[:12]}"

    def hidden_states(self, inputs: Mapping[str, Tensor]) -> NDArray[np.float16]:
        """Return the last hidden states (n, T, D) in half precision.

        Raises:
            RecipeError: If the network gives something else, values that are not finite, or has not enough memory.
        """
        network = _network(self.folder, self.device)
        try:
            with torch.inference_mode():
                moved = {name: value.to(self.device) for name, value in inputs.items()}
                states = network(**moved).last_hidden_state
        except torch.OutOfMemoryError as error:
            raise RecipeError(f"Expected memory for a batch. Found: {error}. Fix: a smaller --batch-size.") from error
        if states.dim() != 3:
            raise RecipeError(
                f"Expected hidden states (n, T, D) from {self.folder}. Found {tuple(states.shape)}. "
                "Fix: a transformer, such as ViT or BERT."
            )
        half = (states[:, :1] if self.keep == "cls" else states).half().cpu().numpy()
        if not np.isfinite(half).all():
            raise RecipeError(
                f"Expected finite features from {self.folder}. Found infinity or NaN in half precision. "
                "Fix: download the network again, or take another."
            )
        array: NDArray[np.float16] = half
        return array

    def encode(self, entries: Sequence[Entry]) -> tuple[list[Entry], NDArray[np.float16], dict[Entry, str]]:
        """Encode samples.

        Returns:
            Those that could be read, their features (n, T, D), and why the others could not.
        """
        good: list[Entry] = []
        faults: dict[Entry, str] = {}
        features = []
        for start in range(0, len(entries), self.batch_size):
            read, bad = self._read(entries[start : start + self.batch_size])
            faults |= bad
            if read:
                good += read
                joined = {name: torch.cat([each[name] for each in read.values()]) for name in self.blank()}
                features.append(self.hidden_states(joined))
        empty = np.zeros((0, *self.hidden_states(self.blank()).shape[1:]), np.float16)
        return good, np.concatenate([empty, *features]), faults

    def is_readable(self, entry: Entry) -> bool:
        """Tell whether a sample can be read now."""
        return not self._read([entry])[1]

    def _read(self, entries: Sequence[Entry]) -> tuple[dict[Entry, dict[str, Tensor]], dict[Entry, str]]:
        read: dict[Entry, dict[str, Tensor]] = {}
        faults: dict[Entry, str] = {}
        for entry in entries:
            try:
                read[entry] = self.inputs([entry.content])
            except RecipeError as error:
                faults[entry] = message(error)
        return read, faults


@attrs.frozen(slots=False)
class FrozenPictures(FrozenNetwork):
    """A vision transformer on whole pictures, resized to its size.

    Args:
        normalize: Whether to bring the pixels to the mean and deviation that the network was trained with; without,
            they are brightness from 0 to 1, as in the code of CGGM.
    """

    normalize: bool = True

    modality = "image"

    @property
    def settings(self) -> dict[str, Any]:
        """See the base."""
        return {"keep": self.keep, "normalize": self.normalize}

    @cached_property
    def transform(self) -> dict[str, Any]:
        """See the base."""
        size = getattr(read_config(self.folder), "image_size", None)
        if not isinstance(size, int):
            raise RecipeError(
                f"Expected a network for square pictures in {self.folder}, such as ViT. Found no `image_size` in its "
                "configuration. Fix: another --image-model."
            )
        mean, deviation = _pixel_statistics(self.folder) if self.normalize else ([0.0] * 3, [1.0] * 3)
        return {"size": size, "resize": "bilinear, antialias", "mean": mean, "std": deviation}

    def inputs(self, contents: Sequence[str]) -> dict[str, Tensor]:
        """See the base."""
        return {"pixel_values": torch.stack([self._pixels(read_picture(Path(path))) for path in contents])}

    def blank(self) -> dict[str, Tensor]:
        """See the base."""
        return {"pixel_values": torch.zeros(1, 3, self.transform["size"], self.transform["size"])}

    @cached_property
    def _pixels(self) -> Callable[[Image.Image], Tensor]:
        v2 = require("torchvision.transforms.v2")
        size = (self.transform["size"],) * 2
        steps = [v2.Resize(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        composed: Callable[[Image.Image], Tensor] = v2.Compose(
            [*steps, v2.Normalize(self.transform["mean"], self.transform["std"])]
        )
        return composed


@attrs.frozen(slots=False)
class FrozenTexts(FrozenNetwork):
    """A text encoder on tokens, cut or padded to one length; the states of padding are kept, too, as CGGM does.

    Args:
        length: Tokens, those at the beginning and end included.
    """

    length: int = 50

    modality = "text"

    @property
    def settings(self) -> dict[str, Any]:
        """See the base."""
        return {"keep": self.keep, "length": self.length}

    @cached_property
    def transform(self) -> dict[str, Any]:
        """See the base."""
        most = getattr(read_config(self.folder), "max_position_embeddings", None)
        if not isinstance(most, int):
            raise RecipeError(
                f"Expected a network for texts in {self.folder}, such as BERT. Found no `max_position_embeddings` in "
                "its configuration. Fix: another --text-model."
            )
        check_length(self.length, most)
        return {"padding": "max_length"}

    def inputs(self, contents: Sequence[str]) -> dict[str, Tensor]:
        """See the base."""
        return tokenized(_tokenizer(self.folder), contents, self.length)

    def blank(self) -> dict[str, Tensor]:
        """See the base."""
        return self.inputs([""])


def check_length(length: int, most: int) -> None:
    """Let a number of tokens fail that leaves no room for a word, or that a network has no positions for.

    Raises:
        RecipeError: Saying how many there may be.
    """
    if not SHORTEST <= length <= most:
        nearest = min(max(length, SHORTEST), most)
        raise RecipeError(f"Expected {SHORTEST} to {most} tokens. Found {length}. Fix: --text-length {nearest}")


def tokenized(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """Return what a text encoder takes, each (n, length): ids, mask and, for some, types."""
    return dict(
        tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").items()
    )


def read_picture(path: Path) -> Image.Image:
    """Decode a picture of any colour model as RGB.

    Raises:
        RecipeError: If the file is missing, damaged, or unreasonably large.
    """
    try:
        return read_image(path)
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow, of some damaged files
        raise RecipeError(f"Expected a readable picture. Found {path}: {error}. Fix: restore the file.") from error


@lru_cache(maxsize=2)
def _network(folder: Path, device: str) -> nn.Module:
    network = load_network(folder)
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:  # no such kind of device; torch without CUDA
        raise RecipeError(f"Expected a device for --device {device}. Found: {error}. Fix: --device cpu") from error


@lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def _pixel_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and deviation by channel that the network was trained with; those of ViT where nobody says."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return [0.5] * 3, [0.5] * 3
    try:
        config = json.loads(path.read_text())
        mean, deviation = ([float(value) for value in config[name]] for name in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"Expected `image_mean` and `image_std` in {path}. Found: {error}. Fix: download it again."
        ) from error
    return mean, deviation
