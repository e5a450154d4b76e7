"""Videos to frames and sound: on tiny flv files, with broken ones among them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from recipe_common.data.prepare.engine import read_manifest
from recipe_common.data.prepare.video import (
    VideoJob,
    find_videos,
    prepare_videos,
    sampled_frames,
    shrink,
    write_frames,
    write_wav,
)
from recipe_common.errors import RecipeError

from .tiny_videos import write_video


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
