"""Converts videos to numbered jpg files of frames and of optical flow, for two-stream networks.

Frames and flow are stored as in the data released with Feichtenhofer et al. (CVPR 2016): names `frame%06d.jpg` from 1,
the shorter side 256 pixels, flow k from frame k to frame k + 1, horizontal and vertical parts in folders of their own.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe_common.data.prepare.engine import Item
from recipe_common.data.prepare.video import picture_of, sampled_frames, write_jpg
from recipe_common.errors import RecipeError, require
from recipe_common.files import atomic_folder

FLOW_BOUND = 20.0
"""Pixels per frame; longer motion is clipped."""
FLOW_METHODS = ("tvl1", "dis")


def optical_flow(method: str) -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]:
    """Return a function from two grey pictures (H, W) to the motion (H, W, 2) in pixels, right and down positive.

    It has an object of OpenCV for each size: one that has seen a small picture computes all later ones on fewer scales.

    Args:
        method: "tvl1" (Zach et al., 2007; as released, about 1 s for a pair of 341 x 256 pixels on one core) or "dis"
            (Kroeger et al., 2016; some 50 times faster).

    Raises:
        RecipeError: If OpenCV, or for TV-L1 its contributed modules, are not installed.
    """
    cv2 = require("cv2")
    cv2.setNumThreads(1)  # every worker process has its own core
    if method == "dis":
        make = partial(cv2.DISOpticalFlow_create, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    elif hasattr(cv2, "optflow"):
        make = cv2.optflow.DualTVL1OpticalFlow_create
    else:
        raise RecipeError(
            "OpenCV should have its contributed modules, for TV-L1",
            found="OpenCV without them",
            fix="run `pip install opencv-contrib-python-headless` in place of the other OpenCV, or use `--flow dis`",
        )
    solver = cache(lambda size: make())
    return lambda before, after: solver(before.shape).calc(before, after, None)


def flow_to_grey(flow: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map motion of -20 to 20 pixels to 0 to 255, both parts alike; no motion is 128."""
    grey = np.rint(255 * (flow + FLOW_BOUND) / (2 * FLOW_BOUND))
    return grey.clip(0, 255).astype(np.uint8)


def write_two_streams(item: Item, *, method: str, short_side: int, stride: int) -> None:
    """Write the missing ones of the folders `item.outputs` (frames, flow to the right, flow down).

    Args:
        item: A video and the three folders.
        method: One of `FLOW_METHODS`.
        short_side: Length in pixels to which the shorter side of pictures is scaled.
        stride: Distance between the frames that are kept, each with the flow to the frame that follows it.

    Raises:
        av.FFmpegError: If the video cannot be decoded.
        ValueError: If it holds fewer than two frames.
    """
    calculate = optical_flow(method)
    with ExitStack() as stack:
        rgb, right, down = (
            None if output.is_dir() else stack.enter_context(atomic_folder(output)) for output in item.outputs
        )
        kept = None
        count = 0
        for number, frame in sampled_frames(item.source, None):
            if number % stride > 1:
                continue
            picture = _scaled(picture_of(frame), short_side)
            grey = require("cv2").cvtColor(picture, require("cv2").COLOR_RGB2GRAY)
            if kept is not None:
                following = grey if grey.shape == kept.shape else _resized(grey, kept)
                flow = flow_to_grey(calculate(kept, following))
                _write(right, number, flow[..., 0])
                _write(down, number, flow[..., 1])
                count += 1
            kept = grey if number % stride == 0 else None
            if kept is not None:
                _write(rgb, number + 1, picture)
        if count == 0:
            raise ValueError("it holds fewer than two video frames")


def _scaled(picture: NDArray[np.uint8], short_side: int) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    factor = short_side / min(height, width)
    scaled: Any = require("cv2").resize(picture, (round(width * factor), round(height * factor)))
    return scaled


def _resized(picture: NDArray[np.uint8], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture in the size of another, where the proportions change inside a video."""
    resized: Any = require("cv2").resize(picture, like.shape[::-1])
    return resized


def _write(folder: Path | None, number: int, picture: NDArray[np.uint8]) -> None:
    if folder is not None:
        write_jpg(folder / f"frame{number:06d}.jpg", Image.fromarray(np.ascontiguousarray(picture)))
