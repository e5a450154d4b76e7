"""Frames and optical flow to tensors, against numbers computed with NumPy and Pillow here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from recipe_common.data.readers.two_stream import TwoStreams, flow_files, two_stream_sources
from recipe_common.data.samples.lists import Row
from recipe_common.errors import RecipeError

from .ucf101_tree import write_clip, write_picture

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def brightness(tensor: torch.Tensor) -> list[int]:
    """Of each picture of the first channel of frames (3, T, S, S) of one colour."""
    values = tensor[0].mean(dim=(1, 2)).numpy() * STD[0] + MEAN[0]
    return [round(255 * float(value)) for value in values]


def ramp(height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    """Bright on the right."""
    return np.tile(np.linspace(40, 200, width).astype(np.uint8), (height, 1))


def stored(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as picture:
        return np.asarray(picture, np.float64)


@pytest.mark.parametrize("pattern", ["frame{:06d}", "frame_{:05d}", "{:05d}"])
def test_evaluation_takes_the_centre_of_each_segment(tmp_path: Path, pattern: str) -> None:
    write_clip(tmp_path, "v", frames=9, pattern=pattern)
    streams = TwoStreams(3, 6)
    frames = streams.rgb(tmp_path / "jpegs_256" / "v")
    assert frames.shape == (3, 3, 6, 6)
    assert frames.dtype == torch.float32
    assert brightness(frames) == pytest.approx([20 * 2, 20 * 5, 20 * 8], abs=1)
    flow = streams.flow((tmp_path / "tvl1_flow" / "u" / "v", tmp_path / "tvl1_flow" / "v" / "v"))
    assert flow.shape == (2, 3, 6, 6)
    # 8 flows in segments of 2, 3 and 3, of which the second each is the centre
    np.testing.assert_allclose(255 * flow[0].mean(dim=(1, 2)), [102, 104, 107], atol=1)
    np.testing.assert_allclose(255 * flow[1].mean(dim=(1, 2)), [152, 154, 157], atol=1)


def test_frames_are_resized_and_normalised_as_by_pillow(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    write_picture(tmp_path / "v" / "frame000001.jpg", pixels)
    with Image.open(tmp_path / "v" / "frame000001.jpg") as picture:
        expected = np.asarray(picture.convert("RGB").resize((5, 5), Image.Resampling.BILINEAR)) / 255
    tensor = TwoStreams(1, 5).rgb(tmp_path / "v")
    np.testing.assert_allclose(tensor[:, 0], np.moveaxis((expected - MEAN) / STD, 2, 0), atol=1e-5)


def test_few_pictures_are_used_more_than_once(tmp_path: Path) -> None:
    write_clip(tmp_path, "v", frames=2)
    assert TwoStreams(3, 4).rgb(tmp_path / "jpegs_256" / "v").shape == (3, 3, 4, 4)
    assert TwoStreams(3, 4).flow((tmp_path / "tvl1_flow" / "u" / "v", tmp_path / "tvl1_flow" / "v" / "v")).shape[1] == 3


def test_training_is_a_function_of_the_seed_and_sees_every_frame(tmp_path: Path) -> None:
    write_clip(tmp_path, "v", frames=6)
    folder = tmp_path / "jpegs_256" / "v"
    streams = TwoStreams(2, 4)
    assert torch.equal(streams.rgb(folder, seed=3), streams.rgb(folder, seed=3))
    seen = [brightness(streams.rgb(folder, seed=seed)) for seed in range(40)]
    assert {20 * round(first / 20) for first, _ in seen} == {20, 40, 60}
    assert {20 * round(second / 20) for _, second in seen} == {80, 100, 120}


def write_ramps(root: Path) -> tuple[Path, Path, Path]:
    write_picture(root / "rgb" / "frame000001.jpg", np.repeat(ramp()[..., None], 3, axis=2))
    write_picture(root / "u" / "frame000001.jpg", ramp())
    write_picture(root / "v" / "frame000001.jpg", ramp())
    return root / "rgb", root / "u", root / "v"


def test_a_clip_is_mirrored_as_a_whole_and_motion_to_the_right_becomes_motion_to_the_left(tmp_path: Path) -> None:
    rgb, right, down = write_ramps(tmp_path)
    pixels = stored(right / "frame000001.jpg")
    streams = TwoStreams(1, 8)
    mirrored = []
    for seed in range(20):
        flow = streams.flow((right, down), seed=seed)[:, 0] * 255
        is_mirrored = bool(flow[1, 0, 0] > flow[1, 0, -1])
        np.testing.assert_allclose(flow[1], pixels[:, ::-1] if is_mirrored else pixels, atol=1e-3)
        np.testing.assert_allclose(flow[0], 255 - pixels[:, ::-1] if is_mirrored else pixels, atol=1e-3)
        frame = streams.rgb(rgb, seed=seed)[0, 0]
        assert bool(frame[0, 0] > frame[0, -1]) is is_mirrored
        mirrored.append(is_mirrored)
    assert 4 < sum(mirrored) < 16


def test_pictures_can_be_mirrored_one_by_one_without_a_change_of_sign(tmp_path: Path) -> None:
    _, right, down = write_ramps(tmp_path)
    pixels = stored(right / "frame000001.jpg")
    seen = set()
    for seed in range(20):
        flow = TwoStreams(1, 8, "picture").flow((right, down), seed=seed)[:, 0] * 255
        mirrored = tuple(bool(part[0, 0] > part[0, -1]) for part in flow)
        for part, is_mirrored in zip(flow, mirrored, strict=True):
            np.testing.assert_allclose(part, pixels[:, ::-1] if is_mirrored else pixels, atol=1e-3)
        seen.add(mirrored)
    assert len(seen) == 4


def test_evaluation_never_mirrors(tmp_path: Path) -> None:
    _, right, down = write_ramps(tmp_path)
    for flip in ("clip", "picture"):
        np.testing.assert_allclose(
            TwoStreams(1, 8, flip).flow((right, down))[1, 0] * 255, stored(down / "frame000001.jpg"), atol=1e-3
        )


def test_flow_parts_that_do_not_match_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path, "v", frames=5)
    folders = (tmp_path / "tvl1_flow" / "u" / "v", tmp_path / "tvl1_flow" / "v" / "v")
    assert len(flow_files(folders)) == 4
    (folders[1] / "frame000004.jpg").unlink()
    with pytest.raises(RecipeError, match=r"should hold the same jpg files\. Found 4 and 3"):
        TwoStreams().flow(folders)


def test_sources_find_folders_in_any_case_and_say_what_is_missing(tmp_path: Path) -> None:
    write_clip(tmp_path, "v_HandstandPushups_g01_c01")
    write_clip(tmp_path, "v_YoYo_g01_c01")
    for file in (tmp_path / "tvl1_flow" / "v" / "v_YoYo_g01_c01").iterdir():
        file.unlink()
    rgb, flow = two_stream_sources(
        [tmp_path / "jpegs_256"], [tmp_path / "tvl1_flow" / "u"], [tmp_path / "tvl1_flow" / "v"], TwoStreams()
    )
    assert rgb.find(Row("v_HandStandPushups_g01_c01", "")) == tmp_path / "jpegs_256" / "v_HandstandPushups_g01_c01"
    assert flow.find(Row("v_HandStandPushups_g01_c01", "")) is not None
    assert rgb.find(Row("v_YoYo_g01_c01", "")) is not None
    assert flow.find(Row("v_YoYo_g01_c01", "")) is None
    assert rgb.find(Row("v_YoYo_g02_c01", "")) is None


def test_checks_decode_everything(tmp_path: Path) -> None:
    write_clip(tmp_path, "v_YoYo_g01_c01")
    parts = [tmp_path / name for name in ("jpegs_256", "tvl1_flow/u", "tvl1_flow/v")]
    rgb, flow = two_stream_sources([parts[0]], [parts[1]], [parts[2]], TwoStreams())
    row = Row("v_YoYo_g01_c01", "")
    rgb.check(rgb.find(row))
    flow.check(flow.find(row))
    for part in (parts[0], parts[2]):
        picture = part / "v_YoYo_g01_c01" / "frame000003.jpg"
        picture.write_bytes(picture.read_bytes()[:40])
    for source in (rgb, flow):
        with pytest.raises(RecipeError, match=r"frame000003\.jpg should be a readable picture\. Found "):
            source.check(source.find(row))
