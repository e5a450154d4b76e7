"""Frozen vision transformers as encoders of pictures: decoding, resizing, normalisation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from PIL import Image
from torch import Tensor

from recipe_common.data.cache.store import Entry
from recipe_common.data.features.networks import FrozenNetwork
from recipe_common.data.readers.frames import read_image
from recipe_common.errors import RecipeError, require
from recipe_common.models.pretrained import read_config


def picture_entry(root: Path, name: str) -> Entry:
    """Return the entry of the picture `root / name`, which need not exist."""
    path = root / name
    return Entry(name, path.stat().st_size if path.is_file() else None, str(path))


@attrs.frozen(slots=False)
class FrozenPictures(FrozenNetwork):
    """A vision transformer on whole pictures, resized to its input size.

    Args:
        normalize: Whether to bring the pixels to the mean and deviation in the training of the network; otherwise they
            are brightness from 0 to 1, as in the code of Guo et al. (NeurIPS 2024).
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
                f"{self.folder} should hold a network for square pictures, such as ViT",
                found="no `image_size` in its configuration",
                fix="give another `--image-model`",
            )
        mean, deviation = _pixel_statistics(self.folder) if self.normalize else ([0.0] * 3, [1.0] * 3)
        return {"size": size, "resize": "bilinear, antialias", "mean": mean, "std": deviation}

    def inputs(self, contents: Sequence[str]) -> dict[str, Tensor]:
        """See the base."""
        return {"pixel_values": torch.stack([self._pixels(read_image(Path(path))) for path in contents])}

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


def _pixel_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and deviation by channel in the training of a network; without a file of them, those of ViT."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return [0.5] * 3, [0.5] * 3
    try:
        config = json.loads(path.read_text())
        mean, deviation = ([float(value) for value in config[name]] for name in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path} should have `image_mean` and `image_std`", found=repr(error), fix="download it again"
        ) from error
    return mean, deviation
