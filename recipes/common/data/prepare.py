"""From videos to the frames and wav files that the recipes read."""

import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.data.layout import Layout, listing
from common.errors import RecipeError, require

WAV_RATE = 16_000
FAILED = "unreadable_videos.txt"


@attrs.frozen
class Job:
    """One video, and where its frames (a folder) and its sound (a wav file) go."""

    video: Path
    frames: Path
    wav: Path

    @property
    def done(self) -> bool:
        """Whether both outputs are there; as they appear in one step each, they are then complete."""
        return self.frames.is_dir() and self.wav.is_file()


@attrs.frozen
class Failure:
    """A video that could not be read, and why."""

    video: Path
    reason: str


def prepare_folder(root: Path, layout: Layout, pattern: str, *, fps: int, workers: int) -> int:
    """Prepare all videos of a dataset and say how it went.

    Args:
        root: The dataset.
        layout: Where its videos are, and where frames and sound go; wav files that are there are kept.
        pattern: Of the video files, such as `*.flv`.
        fps: Frames to keep per second of video.
        workers: Number of processes.

    Returns:
        The exit status: 0, or 1 if videos could not be read; their list is printed and kept in `FAILED`.
    """
    videos = [video for video in sorted((root / layout.videos).glob(pattern)) if not video.name.startswith(".")]
    if not videos:
        raise RecipeError(
            f"Expected videos {root / layout.videos / pattern}. Found {listing(root)}. "
            "Fix: point --data-root to the folder that holds them."
        )
    audio, frames = layout.audio_folder(root), root / layout.frames
    failures = prepare([Job(it, frames / it.stem, audio / f"{it.stem}.wav") for it in videos], fps=fps, workers=workers)
    report = root / FAILED
    report.unlink(missing_ok=True)
    print(f"{len(videos) - len(failures):,} of {len(videos):,} videos are ready in {frames} and {audio}")
    if not failures:
        return 0
    lines = [f"{failure.video}: {failure.reason}" for failure in failures]
    report.write_text("\n".join(lines) + "\n")
    print(*lines, f"These cannot be read; the list is kept in {report}", sep="\n", file=sys.stderr)
    return 1


def prepare(jobs: Sequence[Job], *, fps: float, workers: int) -> list[Failure]:
    """Extract frames and sound of all videos that are not done yet, in `workers` processes, with a progress bar.

    It can be killed at any moment and called again: finished videos are not touched, half-made ones are done anew.

    Returns:
        The videos that could not be read; the others are done.
    """
    waiting = [job for job in jobs if not job.done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    failures = []
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("Videos", total=len(jobs), completed=len(jobs) - len(waiting))
        for failure in _run(waiting, fps, workers):
            progress.advance(task)
            if failure:
                failures.append(failure)
    return sorted(failures, key=lambda failure: failure.video)


def extract(job: Job, fps: float) -> Failure | None:
    """Extract what is missing of one video; return why it could not."""
    av = require("av")
    try:
        if not job.wav.is_file():
            _write_wav(job)
        if not job.frames.is_dir():
            _write_frames(job, fps)
    except (av.FFmpegError, ValueError) as error:
        return Failure(job.video, str(error) or type(error).__name__)
    return None


def _run(jobs: Sequence[Job], fps: float, workers: int) -> Iterator[Failure | None]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent) as pool:
        futures: list[Future[Failure | None]] = [pool.submit(extract, job, fps) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RecipeError(
                "Expected the extracting processes to finish. Found one killed (no memory, or a crash in a decoder). "
                "Fix: run prepare again, it continues; use fewer --workers if memory is short."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """End this worker when its parent is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write_frames(job: Job, fps: float) -> None:
    folder = job.frames.with_name(f".{job.frames.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    av = require("av")
    with av.open(str(job.video)) as video:
        for number, frame in _sampled(video, Fraction(fps)):
            frame.to_image().save(folder / f"{number:05d}.jpg", quality=95)
    if not any(folder.iterdir()):
        raise ValueError("it holds no video frames")
    folder.rename(job.frames)


def _sampled(video: Any, fps: Fraction) -> Iterator[tuple[int, Any]]:
    """Yield (source frame number, frame): the first frame of every interval of 1 / fps seconds.

    Time stamps decide, not the frame rate in the header, which flv files often have wrong or not at all.
    """
    start = None
    interval = -1
    for number, frame in enumerate(video.decode(video=0) if video.streams.video else ()):
        if frame.pts is None:
            raise ValueError(f"frame {number} has no time stamp")
        time = frame.pts * frame.time_base
        start = time if start is None else start
        if (time - start) * fps >= interval + 1:
            interval = int((time - start) * fps)
            yield number, frame


def _write_wav(job: Job) -> None:
    av, soundfile = require("av"), require("soundfile")
    resampler = av.AudioResampler(format="s16", layout="mono", rate=WAV_RATE)
    with av.open(str(job.video)) as video:
        frames = video.decode(audio=0) if video.streams.audio else ()
        blocks = [block.to_ndarray() for frame in frames for block in resampler.resample(frame)]
    if not blocks:
        raise ValueError("it holds no sound")
    blocks += [block.to_ndarray() for block in resampler.resample(None)]
    partial = job.wav.with_name(f".{job.wav.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(partial, np.concatenate(blocks, axis=1)[0], WAV_RATE, subtype="PCM_16", format="WAV")
    os.replace(partial, job.wav)
