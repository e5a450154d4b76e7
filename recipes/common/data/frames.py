"""From the frames of a clip, stored as jpg files, to a tensor."""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs.validators import ge
from PIL import Image
from torch import Tensor

from common.errors import RecipeError, require

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FRAME_NAME = re.compile(r"(?!\.)(?:.*\D)?(\d+)\.jpe?g", re.IGNORECASE)


def frame_files(folder: Path) -> tuple[Path, ...]:
    """List the frames of one clip by rising number: `00000.jpg`, `frame_00001.jpg` and the like; () if none."""
    if not folder.is_dir():
        return ()
    numbered = [(match, path) for path in folder.iterdir() if (match := FRAME_NAME.fullmatch(path.name))]
    return tuple(path for _, path in sorted((int(match[1]), path) for match, path in numbered))


def segments(frames: int, count: int) -> list[range]:
    """Cut `range(frames)` into `count` equal parts; with fewer frames than parts, frames are used more than once."""
    starts = [part * frames // count for part in range(count)]
    ends = [(part + 1) * frames // count for part in range(count)]
    return [range(start, max(start + 1, end)) for start, end in zip(starts, ends, strict=True)]


@attrs.define
class Frames:
    """Reads `count` frames of a clip, one from each of `count` equal segments, and normalises them as ImageNet.

    Training takes a random frame of each segment, a random crop resized to `size` and a random flip, drawn anew for
    each frame as in the papers' code. Evaluation takes the centre frame and resizes the whole picture.

    Args:
        count: Frames per clip.
        size: Height and width in pixels.
    """

    count: int = attrs.field(default=1, validator=ge(1))
    size: int = attrs.field(default=224, validator=ge(1))

    def __call__(self, files: Sequence[Path], *, seed: int | None = None) -> Tensor:
        """Read a clip.

        Args:
            files: All frames of the clip in order, at least one.
            seed: What the random choices of training depend on, and nothing else; None evaluates.

        Returns:
            float32 of shape (3, count, size, size).

        Raises:
            RecipeError: If a picked frame cannot be decoded.
        """
        parts = segments(len(files), self.count)
        if seed is None:
            return self._stack([files[part[len(part) // 2]] for part in parts], self._evaluation)
        # torchvision draws from torch's CPU generator, so that one is borrowed and given back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            picked = [files[part[int(torch.randint(len(part), ()))]] for part in parts]
            return self._stack(picked, self._training)

    def _stack(self, files: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> Tensor:
        return torch.stack([transform(read_image(path)) for path in files], dim=1)

    @cached_property
    def _training(self) -> Any:
        v2 = require("torchvision.transforms.v2")
        return v2.Compose([v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(), *_to_normalised_tensor()])

    @cached_property
    def _evaluation(self) -> Any:
        v2 = require("torchvision.transforms.v2")
        return v2.Compose([v2.Resize((self.size, self.size)), *_to_normalised_tensor()])


def read_image(path: Path) -> Image.Image:
    """Decode a picture as RGB.

    Raises:
        RecipeError: If the file is missing or not a whole picture.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise RecipeError(
            f"Expected a readable jpg file. Found {path}: {error}. "
            "Fix: restore the file, or leave its clip out with --skip-bad."
        ) from error


def _to_normalised_tensor() -> list[Any]:
    v2 = require("torchvision.transforms.v2")
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
