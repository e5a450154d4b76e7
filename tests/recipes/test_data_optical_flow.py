"""Videos to frames and flow: a pattern that moves by a known number of pixels."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from recipe_common.data.prepare import optical_flow as module
from recipe_common.data.prepare.engine import Failure, Item, _process
from recipe_common.data.prepare.optical_flow import FLOW_METHODS, flow_to_grey, optical_flow, write_two_streams
from recipe_common.errors import RecipeError

from .tiny_videos import turn_mp4


def texture(right: int, down: int, size: int = 64) -> NDArray[np.uint8]:
    """Smooth blobs, moved by whole pixels."""
    noise = np.random.default_rng(0).random((size + 32, size + 32)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    grey = 255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return grey[16 - down : 16 - down + size, 16 - right : 16 - right + size].astype(np.uint8)


def write_moving(path: Path, frames: int = 5, right: int = 2, down: int = -1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=25, options={"qscale": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            grey = texture(right * number, down * number)
            frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, axis=2), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def item_of(root: Path) -> Item:
    return Item(root / "v.avi", (root / "rgb" / "v", root / "u" / "v", root / "v" / "v"))


def centre(path: Path) -> float:
    with Image.open(path) as picture:
        assert picture.mode == "L"
        return float(np.median(np.asarray(picture)[16:-16, 16:-16]))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("method", FLOW_METHODS)
def test_flow_is_motion_to_the_right_and_down_in_pixels(method: str) -> None:
    flow = optical_flow(method)(texture(0, 0), texture(3, -2))
    assert flow.shape == (64, 64, 2)
    np.testing.assert_allclose(np.median(flow[16:-16, 16:-16], axis=(0, 1)), [3, -2], atol=0.2)


@pytest.mark.parametrize("method", FLOW_METHODS)
def test_flow_does_not_depend_on_sizes_before(method: str) -> None:
    pair, small = (texture(0, 0, 128), texture(5, -3, 128)), (texture(0, 0, 20), texture(1, 0, 20))
    expected, calculate = optical_flow(method)(*pair), optical_flow(method)
    for _ in range(2):
        calculate(*small)
        np.testing.assert_array_equal(calculate(*pair), expected)


@pytest.mark.parametrize("method", FLOW_METHODS)
def test_a_video_whose_proportions_change_has_all_its_flow(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(64, 64), (64, 64), (64, 96), (64, 96)]
    frames = [
        av.VideoFrame.from_ndarray(np.repeat(texture(2 * number, 0, 96)[:height, :width, None], 3, axis=2))
        for number, (height, width) in enumerate(sizes)
    ]
    monkeypatch.setattr(module, "sampled_frames", lambda video, fps: enumerate(frames))
    item = item_of(tmp_path)
    write_two_streams(item, method=method, short_side=64, stride=1)
    rgb, right, down = item.outputs
    assert len(files(rgb)) == 4
    assert len(files(right)) == len(files(down)) == 3
    shapes = []
    for name in files(right):
        with Image.open(right / name) as picture:
            shapes.append(picture.size)
    assert shapes == [(64, 64), (64, 64), (96, 64)]
    assert centre(right / "frame000003.jpg") == pytest.approx(255 * 22 / 40, abs=3)


def test_grey_values_are_those_of_the_released_flow() -> None:
    flow = np.array([-30, -20, -10, 0, 0.1, 1, 20, 1000], np.float32)
    # 255 (x + 20) / 40, rounded to even at halves as OpenCV rounds, between 0 and 255
    assert flow_to_grey(flow).tolist() == [0, 0, 64, 128, 128, 134, 255, 255]


@pytest.mark.parametrize("method", FLOW_METHODS)
def test_a_video_becomes_frames_and_flow(tmp_path: Path, method: str) -> None:
    item = item_of(tmp_path)
    write_moving(item.source)
    write_two_streams(item, method=method, short_side=64, stride=1)
    rgb, right, down = item.outputs
    assert files(rgb) == [f"frame{number:06d}.jpg" for number in range(1, 6)]
    assert files(right) == files(down) == [f"frame{number:06d}.jpg" for number in range(1, 5)]
    for name in files(right):
        assert centre(right / name) == pytest.approx(255 * 22 / 40, abs=3)
        assert centre(down / name) == pytest.approx(255 * 19 / 40, abs=3)
    with Image.open(rgb / "frame000003.jpg") as picture:
        assert picture.mode == "RGB"
        difference = np.asarray(picture.convert("L"), float) - texture(4, -2)
    assert np.abs(difference).mean() < 6


def test_flow_of_a_turned_video_is_that_of_the_turned_frames(tmp_path: Path) -> None:
    item = item_of(tmp_path)
    mp4 = Item(item.source.with_suffix(".mp4"), item.outputs)
    write_moving(mp4.source, right=2, down=-1)
    turn_mp4(mp4.source, 0, 1, -1, 0)  # a quarter turn clockwise: right becomes down, up becomes right
    write_two_streams(mp4, method="dis", short_side=64, stride=1)
    right, down = (centre(folder / "frame000002.jpg") for folder in mp4.outputs[1:])
    assert right == pytest.approx(255 * 21 / 40, abs=3)
    assert down == pytest.approx(255 * 22 / 40, abs=3)


def test_every_second_frame_keeps_the_flow_to_its_next_one(tmp_path: Path) -> None:
    item = item_of(tmp_path)
    write_moving(item.source, frames=5)
    write_two_streams(item, method="dis", short_side=128, stride=2)
    rgb, right, _ = item.outputs
    assert files(rgb) == ["frame000001.jpg", "frame000003.jpg", "frame000005.jpg"]
    assert files(right) == ["frame000001.jpg", "frame000003.jpg"]
    assert centre(right / "frame000003.jpg") == pytest.approx(255 * 24 / 40, abs=4)  # the picture is twice as large
    with Image.open(rgb / "frame000001.jpg") as picture:
        assert picture.size == (128, 128)


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    item = item_of(tmp_path)
    write_moving(item.source, frames=3)
    item.outputs[0].mkdir(parents=True)
    (item.outputs[0] / "mine.jpg").touch()
    write_two_streams(item, method="dis", short_side=64, stride=1)
    assert files(item.outputs[0]) == ["mine.jpg"]
    assert len(files(item.outputs[1])) == len(files(item.outputs[2])) == 2


def test_a_video_of_one_frame_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    item = item_of(tmp_path)
    write_moving(item.source, frames=1)
    with pytest.raises(ValueError, match="fewer than two video frames"):
        write_two_streams(item, method="dis", short_side=64, stride=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [item.source]


def test_pictures_that_opencv_refuses_are_a_failure_of_their_video(tmp_path: Path) -> None:
    item = item_of(tmp_path)
    write_moving(item.source)
    outcome = _process(item, partial(write_two_streams, method="dis", short_side=8, stride=1), tmp_path)
    assert isinstance(outcome, Failure)
    assert outcome.source == item.source


def test_opencv_without_contributed_modules_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    bare: Any = ModuleType("cv2")
    bare.setNumThreads = lambda number: None
    monkeypatch.setattr(module, "require", lambda name: bare)
    with pytest.raises(RecipeError, match=r"opencv-contrib-python-headless.*--flow dis"):
        optical_flow("tvl1")
