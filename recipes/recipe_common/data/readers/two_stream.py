"""Reads frames and optical flow of a clip from numbered jpg files, as tensors for two-stream networks."""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from attrs.validators import ge, in_
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from recipe_common.data.cache.headers import Facts, Header
from recipe_common.data.readers.frames import (
    CLIP_HEADER,
    FRAME_NAME,
    IMAGENET_MEAN,
    IMAGENET_STD,
    frame_files,
    frame_headers,
    pixels_of,
    read_image,
    segments,
)
from recipe_common.data.samples.audiovisual import Indexed, index_files, listed
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sources import Source
from recipe_common.errors import RecipeError

FLIPS = ("clip", "picture")
FLOW_NAME = re.compile(r"(flow_[xy]_)(\d+)\.jpe?g", re.IGNORECASE)
"""Flow in the folder of the frames: to the right `flow_x_00001.jpg`, downwards `flow_y_00001.jpg`."""


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
            folder: Folder of numbered jpg files.
            seed: Seed of all random choices of training; None for evaluation.

        Raises:
            RecipeError: If a picked frame cannot be decoded.
        """
        pipeline, files = StreamPipeline(self, False), frame_files(folder)
        frames = LazyFrames(len(files), lambda place: pipeline.read(files[place]))
        return pipeline.finish([pipeline.pick(frames, folder, seed)])[0]

    def flow(self, folders: tuple[Path, Path], *, seed: int | None = None) -> Tensor:
        """Read flow, from 20 pixels to the left or up (0) to as many to the right or down (1).

        Args:
            folders: Folders of the part to the right and the part down, with the same numbered jpg files; twice the
                same one if it holds both, see `FLOW_NAME`.
            seed: As in `rgb`.

        Returns:
            float32 of shape (2, count, size, size); 128 / 255 is no motion.

        Raises:
            RecipeError: If the folders hold different files, or a picked file cannot be decoded.
        """
        pipeline, pairs = StreamPipeline(self, True), flow_files(folders)
        flows = LazyFrames(len(pairs), lambda place: pipeline.read(*pairs[place]))
        return pipeline.finish([pipeline.pick(flows, folders, seed)])[0]

    def draw(self, total: int, seed: int | None, *, parts: int) -> tuple[list[int], NDArray[np.bool_]]:
        """Return the places of the pictures, and whether to flip each of their parts, of shape (count, parts)."""
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

    def finish(self, pictures: Tensor, flips: Tensor) -> Tensor:
        """Scale and flip pictures of several clips and, if they are frames, normalise them.

        Args:
            pictures: uint8 of shape (B, count, size, size, 3); flow has 2 in place of 3.
            flips: Whether to flip, bool of shape (B, count, 1); flow may have 2 in place of 1, for each part.

        Returns:
            float32 of shape (B, 3, count, size, size); flow has 2 in place of 3.
        """
        clips = pictures.permute(0, 4, 1, 2, 3).float() / 255
        mirrored = flips.permute(0, 2, 1)[..., None, None]
        clips = torch.where(mirrored, clips.flip(-1), clips)
        if pictures.shape[-1] == 3:
            mean, std = (
                torch.tensor(values, device=clips.device)[:, None, None, None]
                for values in (IMAGENET_MEAN, IMAGENET_STD)
            )
            return (clips - mean) / std
        if self.flip == "clip":
            clips[:, 0] = torch.where(mirrored[:, 0], 1 - clips[:, 0], clips[:, 0])
        return clips


@attrs.frozen
class LazyFrames(Sequence[Tensor]):
    """A sequence of pictures, each read from its file when it is indexed."""

    length: int
    read: Callable[[int], Tensor]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        """Read a picture."""
        return self.read(index)


@attrs.frozen
class StreamPipeline:
    """Keeps all pictures of a clip as uint8, resized as `TwoStreams` does: nothing is lost.

    Args:
        streams: Choice of the pictures of a sample.
        is_flow: Whether the pictures are pairs of grey ones, not frames.
    """

    streams: TwoStreams
    is_flow: bool

    @property
    def settings(self) -> str:
        """Kind and size of the pictures."""
        return f"{'flow' if self.is_flow else 'RGB frames'}, {self.streams.size} x {self.streams.size} pixels"

    def files(self, media: Any) -> list[Path]:
        """Return all pictures of a folder, or of the two folders of a flow."""
        parts = _parts(media) if self.is_flow else (frame_files(media),)
        return [path for part in parts for path in part]

    def note(self, media: Any) -> str:
        """Return nothing: the pictures depend on their files alone."""
        return ""

    def read(self, *paths: Path) -> Tensor:
        """Return one frame, or one flow from two files: uint8 of shape (size, size, 3); flow has 2 in place of 3."""
        size = (self.streams.size, self.streams.size)
        pictures = [_read_grey(path) if self.is_flow else read_image(path) for path in paths]
        resized = [pixels_of(picture.resize(size, Image.Resampling.BILINEAR)) for picture in pictures]
        return torch.stack(resized, dim=2) if self.is_flow else resized[0]

    def decode(self, media: Any) -> list[Tensor]:
        """Return all pictures."""
        if self.is_flow:
            return [self.read(*pair) for pair in flow_files(media)]
        return [self.read(path) for path in frame_files(media)]

    def pick(self, kept: Sequence[Tensor], media: Any, seed: int | None) -> tuple[list[Tensor], Tensor]:
        """Return the pictures of a sample, and which to flip."""
        places, flips = self.streams.draw(len(kept), seed, parts=2 if self.is_flow else 1)
        return [kept[place] for place in places], torch.from_numpy(flips)

    def pack(self, picked: Sequence[tuple[list[Tensor], Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the pictures of a batch, and which to flip: the arguments of `TwoStreams.finish`."""
        pictures = torch.stack([torch.stack(each) for each, _ in picked])
        return pictures, torch.stack([flips for _, flips in picked])

    def finish_packed(self, packed: tuple[Tensor, ...]) -> Tensor:
        """Return the tensor of a batch."""
        return self.streams.finish(*packed)

    def finish(self, picked: Sequence[tuple[list[Tensor], Tensor]]) -> Tensor:
        """Return the tensor of a batch."""
        return self.finish_packed(self.pack(picked))


def two_stream_sources(
    rgb: Sequence[Path], right: Sequence[Path], down: Sequence[Path], streams: TwoStreams
) -> tuple[Source, Source]:
    """Return the sources of `<rgb>/<name>/`, and of `<right>/<name>/` with `<down>/<name>/`, in any case of the name.

    UCF-101, its lists and the data made of it disagree on `HandstandPushups` and `HandStandPushups`.

    Args:
        rgb: Folders of the clips' frames.
        right: Folders of the flow to the right.
        down: Folders of the flow downwards, or those of `right` if these hold both, see `FLOW_NAME`.
        streams: Reader of the pictures.
    """
    folders = [Indexed(index_files(part, ("",), str.lower), str.lower) for part in (rgb, right, down)]
    find_frames, find_flow = partial(_find_one, folders[0]), partial(_find_both, folders[1:])
    frames_pipeline, flow_pipeline = (partial(_pipeline, streams, is_flow) for is_flow in (False, True))
    where = " and ".join(dict.fromkeys((listed(right), listed(down))))
    return (
        Source("rgb", "frames", listed(rgb), find_frames, streams.rgb, _check_rgb, frames_pipeline, CLIP_HEADER),
        Source("flow", "flow", where, find_flow, streams.flow, _check_flow, flow_pipeline, FLOW_HEADER),
    )


def _pipeline(streams: TwoStreams, is_flow: bool, short_side: int) -> StreamPipeline:
    return StreamPipeline(streams, is_flow)


def flow_files(folders: tuple[Path, Path]) -> list[tuple[Path, Path]]:
    """List the files of the two parts of a flow, pair by pair.

    Raises:
        RecipeError: If the parts hold different files.
    """
    right, down = _parts(folders)
    if [_place(path) for path in right] != [_place(path) for path in down]:
        raise _other_files(folders, len(right), len(down))
    return list(zip(right, down, strict=True))


def _parts(folders: tuple[Path, Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the files of both parts of a flow, each by rising number."""
    right, down = folders
    if right != down:
        return frame_files(right), frame_files(down)
    files: dict[str, list[tuple[int, Path]]] = {"flow_x_": [], "flow_y_": []}
    for path in right.iterdir():
        if match := FLOW_NAME.fullmatch(path.name):
            files[match[1].lower()].append((int(match[2]), path))
    across, along = (tuple(path for _, path in sorted(part)) for part in files.values())
    return across, along


def _place(path: Path) -> str:
    """Return the name of a file that both parts of a flow have in common."""
    match = FLOW_NAME.fullmatch(path.name)
    return match[2] if match else path.name


def _read_flow_header(folder: Path) -> Facts:
    """Return number and checksum of the names of a part of a flow, or of both parts where they are in one folder."""
    both = [part for part in _parts((folder, folder)) if part]
    return [frame_headers(part, map(_place, part)) for part in both or [frame_files(folder)]]


def _check_flow_header(folders: tuple[Path, Path], facts: Sequence[Facts]) -> None:
    right, down, *_ = [*(part for parts in facts for part in parts), [0, 0]]
    if right != down:
        raise _other_files(folders, right[0], down[0])


def _other_files(folders: tuple[Path, Path], right: int, down: int) -> RecipeError:
    return RecipeError(
        f"{folders[0]} and {folders[1]} should hold the same jpg files",
        found=f"{right} and {down}",
        fix="restore the files, or leave the clip out with `--skip-bad`",
    )


def _distinct(folders: tuple[Path, Path]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(folders))


FLOW_HEADER = Header("flow", _read_flow_header, _check_flow_header, _distinct)


def _find_one(folders: Indexed, row: Row) -> Path | None:
    folder = folders(row)
    return folder if folder and _holds_pictures(folder, FRAME_NAME) else None


def _find_both(parts: Sequence[Indexed], row: Row) -> tuple[Path, Path] | None:
    right, down = (folders(row) for folders in parts)
    if right is None or down is None:
        return None
    name = FLOW_NAME if right == down else FRAME_NAME
    return (right, down) if _holds_pictures(right, name) and _holds_pictures(down, name) else None


def _holds_pictures(folder: Path, name: re.Pattern[str]) -> bool:
    """Return whether there is a picture; listing all of them would be slow and large: UCF-101 has 7 million."""
    with os.scandir(folder) as entries:
        return any(name.fullmatch(entry.name) for entry in entries)


def _read_grey(path: Path) -> Image.Image:
    return read_image(path).convert("L")


def _check_rgb(folder: Path) -> None:
    for path in frame_files(folder):
        read_image(path)


def _check_flow(folders: tuple[Path, Path]) -> None:
    for pair in flow_files(folders):
        for path in pair:
            read_image(path)
