"""Converts videos to frames and wav files, through PyAV."""

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe_common.data.prepare.engine import Item, run_prepare
from recipe_common.data.readers.non_files import check_file
from recipe_common.errors import RecipeError, require
from recipe_common.files import atomic_file, atomic_folder, listing

WAV_RATE = 16_000
MIN_FRAMES = 10
"""Fewest frames of an event; where there are fewer, Fan et al. add random ones, and here intervals are shorter."""


@attrs.frozen
class VideoJob:
    """A video, the folder of its frames and the wav file of its sound; `more` are folders of frames of other events."""

    video: Path
    frames: Path
    wav: Path
    more: tuple[Path, ...] = ()


def find_videos(root: Path, patterns: Iterable[str], *, shown: Iterable[str] | None = None) -> tuple[Path, ...]:
    """List the videos of a dataset in order, without hidden files.

    Args:
        root: Folder of the dataset.
        patterns: Patterns relative to `root`, such as `VideoFlash/*.flv`.
        shown: Patterns in the message, if these are too many.

    Raises:
        RecipeError: If there are none.
    """
    patterns = tuple(patterns)
    found = {path for pattern in patterns for path in root.glob(pattern) if not path.name.startswith(".")}
    if not found:
        raise RecipeError(
            f"{root} should hold videos {' or '.join(shown or patterns)}",
            found=listing(root),
            fix="point `--data-root` to the folder that holds them",
        )
    return tuple(sorted(found))


def prepare_videos(
    root: Path,
    jobs: Iterable[VideoJob],
    *,
    fps: float,
    workers: int,
    short_side: int | None = None,
    seconds: Mapping[Path, tuple[int, int]] | None = None,
) -> int:
    """Extract frames and sound of all videos that are not done yet; finished frames and wav files are kept.

    Args:
        root: Folder of the dataset, for the manifest.
        jobs: All videos of the dataset.
        fps: Frames to keep per second of video.
        workers: Number of processes.
        short_side: Length in pixels to which the shorter side of larger frames is scaled down; None keeps them.
        seconds: Begin and end of the event whose frames are kept, by folder of frames; None: the whole video.

    Returns:
        The exit status of `run_prepare`.
    """
    require("av")
    require("soundfile")
    items = [Item(job.video, (job.frames, job.wav, *job.more)) for job in jobs]
    return run_prepare(root, items, partial(_extract, fps=fps, short_side=short_side, seconds=seconds), workers=workers)


def write_frames(
    video: Path, folder: Path, fps: float, *, short_side: int | None = None, seconds: tuple[int, int] | None = None
) -> None:
    """Write `folder/<number of the frame in the video, 5 digits>.jpg`; the folder appears in one step.

    Args:
        video: Any file that ffmpeg can decode.
        folder: Folder of the frames, which must not exist.
        fps: Rate in frames per second: the first frame of every interval of 1 / fps seconds is kept.
        short_side: Length in pixels to which the shorter side of larger frames is scaled down; None keeps them.
        seconds: Begin and end of an event, counted from the first frame of the video, whose frames alone are kept; if
            these are fewer than 10, shorter intervals give 10 or more. None: the whole video.

    Raises:
        av.FFmpegError: If the video cannot be decoded.
        ValueError: If it holds no frame, or a frame without time stamp.
    """
    start, end = seconds or (0, math.inf)
    rate = max(fps, math.ceil(MIN_FRAMES / (end - start)))
    first: Any = None
    with atomic_folder(folder) as partial_folder:
        for number, frame in sampled_frames(video, rate):
            time = frame.pts * frame.time_base  # a fraction: a float may be just below the second at which it begins
            first = time if first is None else first
            if time - first >= end:
                break
            if time - first >= start:
                picture = Image.fromarray(picture_of(frame))
                write_jpg(partial_folder / f"{number:05d}.jpg", shrink(picture, short_side))
        if not any(partial_folder.iterdir()):
            raise ValueError("it holds no video frames" + (f" from second {start} to {end}" if seconds else ""))


def write_wav(video: Path, wav: Path, rate: int = WAV_RATE) -> None:
    """Write the sound of a video, averaged to one channel and resampled, as 16-bit wav; it appears in one step.

    Args:
        video: Any file that ffmpeg can decode.
        wav: File of the sound.
        rate: Sampling rate in Hz.

    Raises:
        av.FFmpegError: If the sound cannot be decoded.
        ValueError: If there is none, or if it has values that are not finite.
    """
    av, soundfile = require("av"), require("soundfile")
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    check_file(video, f"{video} should be a readable video")
    with av.open(str(video)) as container:
        frames = container.decode(audio=0) if container.streams.audio else ()
        blocks = [block.to_ndarray() for frame in frames for block in resampler.resample(_finite(frame))]
    if not blocks:
        raise ValueError("it holds no sound")
    blocks += [block.to_ndarray() for block in resampler.resample(None)]
    # Into memory first: libsndfile raises no error on a full disk.
    content = BytesIO()
    soundfile.write(content, np.concatenate(blocks, axis=1)[0], rate, subtype="PCM_16", format="WAV")
    with atomic_file(wav) as path:
        path.write_bytes(content.getvalue())


def _finite(frame: Any) -> Any:
    """Return a frame of sound; values that are not finite would become the loudest 16-bit samples."""
    if not np.isfinite(frame.to_ndarray()).all():
        raise ValueError("its sound has values that are not finite")
    return frame


def sampled_frames(video: Path, fps: float | None) -> Iterator[tuple[int, Any]]:
    """Yield (number of the frame in the video, av.VideoFrame): the first frame of every interval of 1 / fps seconds.

    Intervals follow time stamps, not the frame rate in the header, which is often wrong or missing in flv files.

    Args:
        video: Any file that ffmpeg can decode.
        fps: Frames per second; None yields every frame.
    """
    check_file(video, f"{video} should be a readable video")
    with require("av").open(str(video)) as container:
        start = None
        interval = -1
        for number, frame in enumerate(container.decode(video=0) if container.streams.video else ()):
            if fps is None:
                yield number, frame
                continue
            if frame.pts is None:
                raise ValueError(f"frame {number} has no time stamp")
            time = frame.pts * frame.time_base
            start = time if start is None else start
            passed = int((time - start) * Fraction(fps))
            if passed > interval:
                interval = passed
                yield number, frame


def picture_of(frame: Any) -> NDArray[np.uint8]:
    """Return an av.VideoFrame as it is displayed, RGB of shape (height, width, 3).

    PyAV leaves the display matrix of a video, such as that of a phone held upright, to its callers. Quarter turns and
    mirror images are exact; another angle counts as the nearest quarter turn.
    """
    picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return picture if matrix is None else _turned(picture, *struct.unpack("=9i", bytes(matrix)))


def _turned(picture: NDArray[np.uint8], *matrix: int) -> NDArray[np.uint8]:
    """Move the pixel at (x, y) to (a x + c y, b x + d y), for a display matrix (a, b, u, c, d, v, x, y, w)."""
    a, b, _, c, d, *_ = matrix
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, across, down = picture.swapaxes(0, 1), c, b
    picture = picture[:, ::-1] if across < 0 else picture
    picture = picture[::-1] if down < 0 else picture
    return np.ascontiguousarray(picture)


def shrink(picture: Image.Image, short_side: int | None) -> Image.Image:
    """Scale a picture down until its shorter side has `short_side` pixels; smaller ones and None leave it as it is."""
    smaller = min(picture.size)
    if short_side is None or smaller <= short_side:
        return picture
    width, height = (round(side * short_side / smaller) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def write_jpg(path: Path, picture: Image.Image) -> None:
    """Write a picture as jpg of quality 95."""
    # Into memory first: on a full disk, Pillow may leave a cut file without an error.
    content = BytesIO()
    picture.save(content, "JPEG", quality=95)
    path.write_bytes(content.getvalue())


def _extract(item: Item, fps: float, short_side: int | None, seconds: Mapping[Path, tuple[int, int]] | None) -> None:
    frames, wav, *more = item.outputs
    if not wav.is_file():
        write_wav(item.source, wav)
    for folder in (frames, *more):
        if not folder.is_dir():
            event = None if seconds is None else seconds[folder]
            write_frames(item.source, folder, fps, short_side=short_side, seconds=event)
