"""Videos to frames and sound: on tiny flv files, with broken ones among them, and killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

import cremad
from common.data.prepare import Job, extract, prepare
from common.errors import RecipeError

from .cremad_tree import names, write_wav

RECIPES = Path(cremad.__file__).parent
SOUND_RATE = 44_100


def write_video(path: Path, seconds: float = 2.5, fps: int = 10, *, sound: bool = True, size: int = 16) -> None:
    """Frame number n has the brightness 5 * n, at most 255; the sound is a tone of 440 Hz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        picture = video.add_stream("flv", rate=fps, options={"g": "5", "qscale": "2"})
        picture.width = picture.height = size
        tone = video.add_stream("pcm_s16le", rate=SOUND_RATE, layout="mono") if sound else None
        for number in range(int(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), min(5 * number, 255), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            video.mux(picture.encode(frame))
        video.mux(picture.encode())
        if tone:
            samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * SOUND_RATE)) / SOUND_RATE)
            block = av.AudioFrame.from_ndarray((samples * 2**15).astype(np.int16)[None], format="s16", layout="mono")
            block.sample_rate, block.pts = SOUND_RATE, 0
            video.mux(tone.encode(block))
            video.mux(tone.encode())


def job_of(root: Path, name: str = "clip") -> Job:
    return Job(root / f"{name}.flv", root / "Image-01-FPS" / name, root / "AudioWAV" / f"{name}.wav")


def outputs(root: Path) -> dict[str, int]:
    """Every file that readers look at, with the time at which it was written."""
    files = [path for folder in ("Image-01-FPS", "AudioWAV") for path in (root / folder).rglob("*") if path.is_file()]
    visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in visible}


@pytest.mark.parametrize(("fps", "numbers"), [(1, [0, 10, 20]), (2, [0, 5, 10, 15, 20])])
def test_frames_are_named_by_their_number_in_the_video(tmp_path: Path, fps: int, numbers: list[int]) -> None:
    job = job_of(tmp_path)
    write_video(job.video)
    assert extract(job, fps) is None
    assert job.done
    frames = sorted(job.frames.iterdir())
    assert [path.name for path in frames] == [f"{number:05d}.jpg" for number in numbers]
    for path, number in zip(frames, numbers, strict=True):
        with Image.open(path) as picture:
            assert picture.size == (16, 16)
            assert np.asarray(picture).mean() == pytest.approx(5 * number, abs=6)


def test_missing_sound_is_taken_from_the_video(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    write_video(job.video)
    extract(job, 1)
    samples, rate = soundfile.read(job.wav)
    assert (rate, samples.ndim) == (16_000, 1)
    assert len(samples) == pytest.approx(2.5 * rate, abs=50)
    assert np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples) == pytest.approx(440, abs=1)


def test_sound_that_is_there_is_kept(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    write_video(job.video, sound=False)
    write_wav(job.wav)
    before = job.wav.read_bytes()
    assert extract(job, 1) is None
    assert job.wav.read_bytes() == before


def test_a_video_without_sound_is_a_failure_if_there_is_no_wav(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    write_video(job.video, sound=False)
    failure = extract(job, 1)
    assert failure is not None
    assert (failure.video, failure.reason) == (job.video, "it holds no sound")
    assert not job.done


@pytest.mark.parametrize("content", [b"", b"not a video", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_corrupt_video_is_a_failure_and_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    job = job_of(tmp_path)
    job.video.write_bytes(content)
    assert extract(job, 1) is not None
    assert outputs(tmp_path) == {}


def test_half_made_frames_of_a_killed_run_are_made_anew(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    write_video(job.video)
    partial = job.frames.with_name(".clip.partial")
    partial.mkdir(parents=True)
    (partial / "99999.jpg").touch()
    assert extract(job, 1) is None
    assert len(list(job.frames.iterdir())) == 3
    assert not partial.exists()


def test_the_command_lists_corrupt_videos_and_does_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = names(1)[:2], "1002_IEO_NEU_XX"
    for name in good:
        write_video(tmp_path / "VideoFlash" / f"{name}.flv")
    (tmp_path / "VideoFlash" / f"{bad}.flv").write_bytes(b"broken")
    arguments = ["--data-root", str(tmp_path), "--workers", "2"]
    assert cremad.prepare_main(arguments) == 1
    captured = capsys.readouterr()
    assert "2 of 3 videos are ready" in captured.out
    assert f"{bad}.flv" in captured.err
    assert f"{bad}.flv" in (tmp_path / "unreadable_videos.txt").read_text()
    assert len(outputs(tmp_path)) == 2 * (3 + 1)

    (tmp_path / "VideoFlash" / f"{bad}.flv").unlink()
    before = outputs(tmp_path)
    assert cremad.prepare_main(arguments) == 0
    assert outputs(tmp_path) == before
    assert not (tmp_path / "unreadable_videos.txt").exists()


def test_nothing_to_do_is_no_failure(tmp_path: Path) -> None:
    assert prepare([], fps=1, workers=1) == []


def test_a_root_without_videos_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"VideoFlash/\*\.flv.*Found an empty folder"):
        cremad.prepare_main(["--data-root", str(tmp_path)])


def children_of(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_a_killed_run_continues_and_leaves_no_process(tmp_path: Path) -> None:
    for name in names(1):
        write_video(tmp_path / "VideoFlash" / f"{name}.flv", seconds=4, size=160, fps=30)
    command = [sys.executable, str(RECIPES / "cremad.py"), "prepare", "--data-root", str(tmp_path), "--workers", "2"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list((tmp_path / "Image-01-FPS").glob("1*"))) >= 2)
    workers = children_of(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert len(workers) >= 2
    wait_until(lambda: not any(is_alive(worker) for worker in workers))

    done = outputs(tmp_path)
    assert 0 < len(done) < 12 * 5
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    everything = outputs(tmp_path)
    assert len(everything) == 12 * (4 + 1)
    assert {path: everything[path] for path in done} == done
