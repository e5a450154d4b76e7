"""Videos to frames and sound: on tiny flv files, with broken ones among them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile
from PIL import Image

from recipe_common.data.prepare.engine import read_manifest
from recipe_common.data.prepare.video import (
    VideoJob,
    find_videos,
    picture_of,
    prepare_videos,
    sampled_frames,
    shrink,
    write_frames,
    write_wav,
)
from recipe_common.errors import RecipeError

from .tiny_videos import turn_mp4, write_video


def job_of(root: Path, name: str = "clip") -> VideoJob:
    return VideoJob(root / "videos" / f"{name}.flv", root / "frames" / name, root / "audio" / f"{name}.wav")


@pytest.mark.parametrize(("fps", "numbers"), [(1, [0, 10, 20]), (2, [0, 5, 10, 15, 20]), (0.5, [0, 20])])
def test_frames_are_named_by_their_number_in_the_video(tmp_path: Path, fps: float, numbers: list[int]) -> None:
    write_video(tmp_path / "clip.flv")
    folder = tmp_path / "frames" / "clip"
    write_frames(tmp_path / "clip.flv", folder, fps)
    frames = sorted(folder.iterdir())
    assert [path.name for path in frames] == [f"{number:05d}.jpg" for number in numbers]
    for path, number in zip(frames, numbers, strict=True):
        with Image.open(path) as picture:
            assert picture.size == (16, 16)
            assert np.asarray(picture).mean() == pytest.approx(5 * number, abs=6)


def test_every_frame_can_be_had(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.flv", seconds=1.5)
    assert [number for number, _ in sampled_frames(tmp_path / "clip.flv", None)] == list(range(15))


def write_quarters(path: Path) -> None:
    """Write a video of (48, 64) pixels: the upper left quarter is white, the upper right grey, the rest black."""
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=10, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:24, :32], pixels[:24, 32:] = 255, 128
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


WHITE, GREY, BLACK = 255, 128, 0
TURNS = {
    "as it is": ((1, 0, 0, 1), [[WHITE, GREY], [BLACK, BLACK]]),
    "90 degrees clockwise": ((0, 1, -1, 0), [[BLACK, WHITE], [BLACK, GREY]]),
    "180 degrees": ((-1, 0, 0, -1), [[BLACK, BLACK], [GREY, WHITE]]),
    "90 degrees counter-clockwise": ((0, -1, 1, 0), [[GREY, BLACK], [WHITE, BLACK]]),
    "left and right exchanged": ((-1, 0, 0, 1), [[GREY, WHITE], [BLACK, BLACK]]),
    "top and bottom exchanged": ((1, 0, 0, -1), [[BLACK, BLACK], [WHITE, GREY]]),
    "transposed": ((0, 1, 1, 0), [[WHITE, BLACK], [GREY, BLACK]]),
    "transposed at the other diagonal": ((0, -1, -1, 0), [[BLACK, GREY], [BLACK, WHITE]]),
}


@pytest.mark.parametrize(("matrix", "quarters"), TURNS.values(), ids=TURNS)
def test_frames_are_turned_as_the_video_is_displayed(
    tmp_path: Path, matrix: tuple[int, int, int, int], quarters: list[list[int]]
) -> None:
    path = tmp_path / "clip.mp4"
    write_quarters(path)
    turn_mp4(path, *matrix)
    write_frames(path, tmp_path / "frames", 10)
    height, width = (48, 64) if matrix[0] else (64, 48)
    for picture in sorted((tmp_path / "frames").iterdir()):
        pixels = np.asarray(Image.open(picture).convert("L"))
        assert pixels.shape == (height, width)
        means = pixels.reshape(2, height // 2, 2, width // 2).mean(axis=(1, 3))
        np.testing.assert_allclose(means, quarters, atol=8)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_turned_frames_are_those_of_opencv(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = tmp_path / "clip.mp4"
    write_quarters(path)
    turn_mp4(path, *matrix)
    _, expected = cv2.VideoCapture(str(path)).read()
    _, frame = next(sampled_frames(path, None))
    np.testing.assert_allclose(picture_of(frame).astype(int), expected[..., ::-1].astype(int), atol=8)


def test_frames_that_are_not_turned_stay_bitwise(tmp_path: Path) -> None:
    write_quarters(tmp_path / "clip.mp4")
    for _, frame in sampled_frames(tmp_path / "clip.mp4", None):
        np.testing.assert_array_equal(picture_of(frame), np.asarray(frame.to_image()))


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [((64, 32), 16, (32, 16)), ((32, 64), 16, (16, 32)), ((320, 240), 64, (85, 64)), ((64, 32), 32, (64, 32))],
)
def test_large_frames_shrink(size: tuple[int, int], short_side: int, expected: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    assert shrink(picture, short_side).size == expected
    assert shrink(picture, None).size == shrink(picture, 1000).size == size


def test_sound_is_mono_at_16_khz(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.flv")
    write_wav(tmp_path / "clip.flv", tmp_path / "audio" / "clip.wav")
    samples, rate = soundfile.read(tmp_path / "audio" / "clip.wav")
    assert (rate, samples.ndim) == (16_000, 1)
    assert len(samples) == pytest.approx(2.5 * rate, abs=50)
    assert np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples) == pytest.approx(440, abs=1)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.flv", sound=False)
    with pytest.raises(ValueError, match="it holds no sound"):
        write_wav(tmp_path / "clip.flv", tmp_path / "clip.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.flv"]


def test_sound_with_a_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    samples = np.zeros((1, 1_000), np.float32)
    samples[0, 999] = np.nan
    with av.open(str(tmp_path / "clip.mkv"), "w") as video:
        stream = video.add_stream("pcm_f32le", rate=16_000, layout="mono")
        block = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        block.sample_rate, block.pts = 16_000, 0
        video.mux(stream.encode(block))
        video.mux(stream.encode())
    with pytest.raises(ValueError, match="values that are not finite"):
        write_wav(tmp_path / "clip.mkv", tmp_path / "clip.wav")
    assert not (tmp_path / "clip.wav").exists()


def test_sound_without_a_picture_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.zeros(1600), 16_000)
    with pytest.raises(ValueError, match="it holds no video frames"):
        write_frames(tmp_path / "clip.wav", tmp_path / "frames", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.wav"]


@pytest.mark.parametrize(
    ("content", "error", "found"),
    [
        (b"not a video", av.FFmpegError, "Invalid data"),
        (b"", RecipeError, r"clip\.flv should be a readable video\. Found an empty file: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", RecipeError, "Found a git-lfs pointer.*: run `git lfs pull`"),
        (b"<!DOCTYPE html>", RecipeError, "Found a web page"),
    ],
)
def test_a_corrupt_video_leaves_nothing(tmp_path: Path, content: bytes, error: type[Exception], found: str) -> None:
    (tmp_path / "clip.flv").write_bytes(content)
    with pytest.raises(error, match=found):
        write_frames(tmp_path / "clip.flv", tmp_path / "frames", 1)
    with pytest.raises(error, match=found):
        write_wav(tmp_path / "clip.flv", tmp_path / "clip.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.flv"]


def test_videos_become_frames_and_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job_of(tmp_path, name) for name in ("bad", "good", "heard", "silent")]
    write_video(jobs[1].video, size=(64, 32))
    write_video(jobs[2].video, sound=False)
    write_video(jobs[3].video, sound=False)
    jobs[0].video.write_bytes(b"broken")
    jobs[2].wav.parent.mkdir()
    soundfile.write(jobs[2].wav, np.zeros(100), 16_000)
    before = jobs[2].wav.read_bytes()

    assert prepare_videos(tmp_path, jobs, fps=1, workers=2, short_side=24) == 1
    captured = capsys.readouterr()
    assert "2 of 4 videos are ready" in captured.out
    assert f"{jobs[3].video}: it holds no sound" in captured.err
    assert str(jobs[0].video) in captured.err
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == ["good", "heard"]
    with Image.open(jobs[1].frames / "00010.jpg") as picture:
        assert picture.size == (48, 24)
    assert jobs[2].wav.read_bytes() == before
    assert read_manifest(tmp_path)["frames/good"]["files"] == 3


def test_videos_are_found_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "a/1.mp4", "a/.3.mp4", "a/4.avi"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert find_videos(tmp_path, ["*/*.mp4", "a/*"]) == tuple(
        tmp_path / name for name in ("a/1.mp4", "a/4.avi", "b/2.mp4")
    )


@pytest.mark.parametrize(("folder", "found"), [("", "an empty folder"), ("absent", "no such folder")])
def test_a_root_without_videos_is_explained(tmp_path: Path, folder: str, found: str) -> None:
    with pytest.raises(RecipeError, match=rf"should hold videos VideoFlash/\*\.flv\. Found {found}"):
        find_videos(tmp_path / folder, ["VideoFlash/*.flv"])
