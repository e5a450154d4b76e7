"""Frames and optical flow of a clip, both stored as numbered jpg files, as tensors."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import torch
from attrs.validators import ge, in_
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.data.audiovisual import Indexed, index_files
from common.data.frames import FRAME_NAME, IMAGENET_MEAN, IMAGENET_STD, frame_files, read_image, segments
from common.data.lists import Row
from common.data.media import Source
from common.errors import RecipeError

FLIPS = ("clip", "picture")


@attrs.frozen
class TwoStreams:
    """Reads `count` frames and `count` optical flows of a clip, one from each of `count` equal segments.

    Training takes a random one of each segment (frames and flow at the same share of the clip) and flips at random;
    evaluation takes the centre ones. All are resized to `size` without keeping the aspect ratio, not cropped.

    Args:
        count: Frames, and flows, per clip.
        size: Height and width in pixels.
        flip: "clip" flips all of a clip or nothing, and the flow to the right then changes its sign. "picture" flips
            each picture by itself, the two parts of a flow too, and changes no sign, as the BalanceBenchmark code.
    """

    count: int = attrs.field(default=3, validator=ge(1))
    size: int = attrs.field(default=224, validator=ge(1))
    flip: str = attrs.field(default="clip", validator=in_(FLIPS))

    def rgb(self, folder: Path, *, seed: int | None = None) -> Tensor:
        """Read frames, normalised as ImageNet: float32 of shape (3, count, size, size).

        Args:
            folder: Holds numbered jpg files.
            seed: What the random choices of training depend on, and nothing else; None evaluates.

        Raises:
            RecipeError: If a picked frame cannot be decoded.
        """
        files = frame_files(folder)
        places, flips = self._draw(len(files), seed, parts=1)
        pictures = [self._read(read_image(files[place]), flip[0]) for place, flip in zip(places, flips, strict=True)]
        stacked = torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2)
        mean, std = (torch.tensor(values)[:, None, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return (stacked - mean) / std

    def flow(self, folders: tuple[Path, Path], *, seed: int | None = None) -> Tensor:
        """Read flow, from 20 pixels to the left or up (0) to as many to the right or down (1).

        Args:
            folders: Of the parts to the right and down, with as many numbered jpg files.
            seed: As in `rgb`.

        Returns:
            float32 of shape (2, count, size, size); 128 / 255 is no motion.

        Raises:
            RecipeError: If the folders hold different numbers, or a picked file cannot be decoded.
        """
        pairs = flow_files(folders)
        places, flips = self._draw(len(pairs), seed, parts=2)
        flows = np.stack(
            [
                [self._read(_read_grey(path), flip) for path, flip in zip(pairs[place], both, strict=True)]
                for place, both in zip(places, flips, strict=True)
            ],
            axis=1,
        )
        if self.flip == "clip" and flips.any():
            flows[0] = 1 - flows[0]
        return torch.from_numpy(flows)

    def _draw(self, total: int, seed: int | None, *, parts: int) -> tuple[list[int], NDArray[np.bool_]]:
        """Return the places of the pictures, and of each of their parts whether to flip it, shape (count, parts)."""
        pieces = segments(total, self.count)
        if seed is None:
            return [piece[len(piece) // 2] for piece in pieces], np.zeros((self.count, parts), bool)
        random = np.random.default_rng(seed)  # the same for frames and flow
        flips = np.full((self.count, parts), random.random() < 0.5)
        places = [
            piece[int(share * len(piece))] for piece, share in zip(pieces, random.random(self.count), strict=True)
        ]
        if self.flip == "picture":
            flips = np.random.default_rng((seed, parts)).random((self.count, parts)) < 0.5
        return places, flips

    def _read(self, picture: Image.Image, flip: bool) -> NDArray[np.float32]:
        resized = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels: NDArray[np.float32] = np.asarray(resized, np.float32) / np.float32(255)
        return np.flip(pixels, axis=1) if flip else pixels


def two_stream_sources(rgb: Path, right: Path, down: Path, streams: TwoStreams) -> tuple[Source, Source]:
    """Return the sources of `<rgb>/<name>/`, and of `<right>/<name>/` with `<down>/<name>/`, in any case of the name.

    UCF-101 itself, its lists and what others made of it disagree on `HandstandPushups` and `HandStandPushups`.
    """
    folders = [Indexed(index_files([folder], ("",), str.lower), str.lower) for folder in (rgb, right, down)]
    return (
        Source("rgb", "frames", str(rgb), partial(_find_one, folders[0]), streams.rgb, _check_rgb),
        Source("flow", "flow", f"{right} and {down}", partial(_find_both, folders[1:]), streams.flow, _check_flow),
    )


def flow_files(folders: tuple[Path, Path]) -> list[tuple[Path, Path]]:
    """List the files of the two parts of a flow, pair by pair.

    Raises:
        RecipeError: If the parts hold different files.
    """
    right, down = (frame_files(folder) for folder in folders)
    if [path.name for path in right] != [path.name for path in down]:
        raise RecipeError(
            f"Expected the same jpg files in {folders[0]} and {folders[1]}. Found {len(right)} and {len(down)}. "
            "Fix: restore the files, or leave the clip out with --skip-bad."
        )
    return list(zip(right, down, strict=True))


def _find_one(folders: Indexed, row: Row) -> Path | None:
    folder = folders(row)
    return folder if folder and _holds_pictures(folder) else None


def _find_both(parts: Sequence[Indexed], row: Row) -> tuple[Path, Path] | None:
    right, down = (_find_one(folders, row) for folders in parts)
    return (right, down) if right and down else None


def _holds_pictures(folder: Path) -> bool:
    """Whether there is one; listing all of them would take long and much memory: UCF-101 has 7 million."""
    with os.scandir(folder) as entries:
        return any(FRAME_NAME.fullmatch(entry.name) for entry in entries)


def _read_grey(path: Path) -> Image.Image:
    return read_image(path).convert("L")


def _check_rgb(folder: Path) -> None:
    for path in frame_files(folder):
        read_image(path)


def _check_flow(folders: tuple[Path, Path]) -> None:
    for pair in flow_files(folders):
        for path in pair:
            read_image(path)
