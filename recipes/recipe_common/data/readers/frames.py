"""Reads frames of a clip from jpg files: their choice, random crops, resizing and normalisation."""

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import torch
from attrs.validators import ge
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from recipe_common.data.cache.headers import Facts, Header
from recipe_common.data.readers.decoding import decoding
from recipe_common.data.readers.non_files import file_error
from recipe_common.data.samples.batches import batch_tensor
from recipe_common.errors import RecipeError, require

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
"""Share of the picture, and width over height, of a random crop: torchvision's, which is in the papers' code."""
HEADERS_PER_CLIP = 16
"""Frames of a clip whose headers are read before the training, spread evenly; of all others only the size."""
FRAME_NAME = re.compile(r"(?!\.|flow_[xy]_)(?:.*\D)?(\d+)\.jpe?g", re.IGNORECASE)
"""Optical flow in the folder of the frames, as MMAction2 has it, is no frame."""


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


@attrs.frozen(eq=False)
class Crop:
    """A part of a picture, and whether to flip it.

    Attributes:
        pixels: uint8 of shape (height, width, 3); may be a view.
        is_flipped: Whether left and right are to be swapped.
    """

    pixels: Tensor
    is_flipped: bool = False


@attrs.frozen
class Frames:
    """Reads `count` frames of a clip, one from each of `count` equal segments, and normalises them as ImageNet.

    Training takes a random frame of each segment, a random crop resized to `size` and a random flip, drawn anew for
    each frame as in the papers' code. Evaluation takes the centre frame and resizes the whole picture. Pictures are
    resized by torch, bilinear with antialiasing: a third of the time of Pillow, whose result it equals to one level of
    255 (it rounds its weights).

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
            seed: Seed of all random choices of training; None for evaluation.

        Returns:
            float32 of shape (3, count, size, size).

        Raises:
            RecipeError: If a picked frame cannot be decoded.
        """
        clip = self.pick(len(files), lambda index: pixels_of(read_image(files[index])), seed)
        return self.finish([clip])[0]

    def pick(self, total: int, read: Callable[[int], Tensor], seed: int | None) -> list[Crop]:
        """Choose frames and their crops.

        Args:
            total: Number of frames of the clip.
            read: Returns a frame by its index: uint8 of shape (height, width, 3).
            seed: Seed of all random choices of training; None for evaluation.
        """
        parts = segments(total, self.count)
        if seed is None:
            return [Crop(read(part[len(part) // 2])) for part in parts]
        # torchvision draws from torch's CPU generator, whose state is restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            picked = [part[int(torch.randint(len(part), ()))] for part in parts]
            return [random_crop(read(index)) for index in picked]

    def finish(self, clips: Sequence[Sequence[Crop]]) -> Tensor:
        """Resize, flip and normalise the crops of several clips: float32 of shape (B, 3, count, size, size)."""
        finished = batch_tensor(len(clips), 3, self.count, self.size, self.size)
        scale, shift = normalisation(finished.device)
        for clip, crops in zip(finished, clips, strict=True):
            for index, crop in enumerate(crops):
                picture = crop.pixels.permute(2, 0, 1)[None]
                resized = interpolate(picture, (self.size, self.size), mode="bilinear", antialias=True)[0]
                # One picture at a time: it is still in the processor's cache.
                clip[:, index].copy_(resized.flip(-1) if crop.is_flipped else resized).mul_(scale).add_(shift)
        return finished


def random_crop(picture: Tensor) -> Crop:
    """Draw a part of a picture (height, width, 3), and whether to flip it, from torch's global generator."""
    transforms = require("torchvision.transforms")
    top, left, height, width = transforms.RandomResizedCrop.get_params(picture.permute(2, 0, 1), CROP_AREA, CROP_RATIO)
    return Crop(picture[top : top + height, left : left + width], bool(torch.rand(()) < 0.5))


def normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the factor of levels of 0 to 255 and the offset that is then added, each of shape (3, 1, 1)."""
    mean, std = (
        torch.tensor(values, device=device, dtype=torch.float64)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (1 / (255 * std)).float(), (-mean / std).float()


def pixels_of(image: Image.Image) -> Tensor:
    """Return a picture as uint8 of shape (height, width, 3), or (height, width) if it is grey."""
    return torch.from_numpy(np.array(image))


def read_image(path: Path) -> Image.Image:
    """Decode a picture as RGB.

    Raises:
        RecipeError: If the file is missing, damaged, unreasonably large or not a whole picture.
    """
    with decoding(partial(_bad_picture, path)), Image.open(path) as image:
        return image.convert("RGB")


def read_picture_header(path: Path) -> Facts:
    """Return the width and height of a picture.

    Raises:
        RecipeError: If the file is missing, no picture, or unreasonably large.
    """
    with decoding(partial(_bad_picture, path)), Image.open(path) as image:
        return [*image.size]


def read_clip_header(folder: Path) -> Facts:
    """Return the number of frames in a folder, and a checksum of their names.

    Raises:
        RecipeError: If a frame is an empty file, or is no picture and among `HEADERS_PER_CLIP`.
    """
    files = frame_files(folder)
    return frame_headers(files, (path.name for path in files))


def frame_headers(files: Sequence[Path], names: Iterable[str]) -> Facts:
    """Return the number of some frames, and a checksum of their names.

    Args:
        files: The frames.
        names: Their names, or the parts of these that count.

    Raises:
        RecipeError: If a frame is an empty file, or is no picture and among `HEADERS_PER_CLIP`.
    """
    for path in files:
        if path.stat().st_size == 0:
            raise _bad_picture(path, "nothing")
    for part in segments(len(files), min(len(files), HEADERS_PER_CLIP)):
        read_picture_header(files[part[0]])
    return [len(files), zlib.crc32("\n".join(names).encode())]


def _bad_picture(path: Path, found: str) -> RecipeError:
    return file_error(
        path,
        f"{path} should be a readable picture",
        found=found,
        fix="restore the file",
        otherwise=", or leave its sample out with `--skip-bad`",
    )


PICTURE_HEADER = Header("picture", read_picture_header)
CLIP_HEADER = Header("frames", read_clip_header)
