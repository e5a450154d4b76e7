"""Shared parts of the recipes for audio-visual clips: settings, folders, the data of a run, and `prepare`."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from recipe_common.arguments import positive_int, seed_int, share_float
from recipe_common.data.cache.feed import FeedSettings
from recipe_common.data.prepare.engine import Preparation
from recipe_common.data.prepare.video import VideoJob, find_videos
from recipe_common.data.readers.audio import AudioSettings, FrontEnd, front_end
from recipe_common.data.readers.frames import Frames
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.samples.assemble import open_samples
from recipe_common.data.samples.audiovisual import (
    FRAME_CHOICES,
    HDF5_ENDING,
    audio_source,
    existing,
    frames_source,
    index_files,
    listed,
)
from recipe_common.data.samples.splits import Split, hold_out
from recipe_common.data.samples.youtube import ListedKey, clip_key
from recipe_common.errors import RecipeError
from recipe_common.files import listing
from recipe_common.models.fusion import FUSIONS
from recipe_common.recipe import Data
from recipe_common.settings.declaration import flag, group
from recipe_common.settings.shared import Settings

SHOWN = 4
"""Patterns of a layout that messages list, the first ones."""
OTHER_SOUND = (".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus")
"""Endings of sound files that downloaders write and no front end reads."""
VAL_SHARE = 0.1
"""Share of every class of the training list that is held out where there is no list for validation."""
SHORT_SIDE = "scale frames down until their shorter side has this many pixels; default: keep them, as the papers do"


@attrs.frozen(kw_only=True)
class ClipSettings:
    """Settings of recipes for audio-visual clips."""

    audio: AudioSettings = group(AudioSettings)
    audio_dir: tuple[str, ...] | None = flag(
        None,
        "folders of sound files, absolute or under the data root, instead of the known layouts; may hold *",
        metavar="DIR",
    )
    visual_dir: tuple[str, ...] | None = flag(
        None,
        "folders of frames, absolute or under the data root, instead of the known layouts; may hold *",
        metavar="DIR",
    )
    split_seed: int = flag(0, "seed of the clips held out for validation, independent of --seed", number=seed_int)
    min_found: float = flag(0.8, "share of the listed clips that must be on disk", number=share_float, metavar="SHARE")
    frames: int = flag(3, "frames per clip", number=positive_int)
    frame_choice: str = flag(
        "segments",
        "segments: a random frame of each segment, the centre one in evaluation; start: the first frame of each "
        "segment; first: the first frames of the clip",
        choices=FRAME_CHOICES,
    )
    image_size: int = flag(224, number=positive_int, metavar="PIXELS")
    fusion: str = flag("concat", choices=FUSIONS)
    feed: FeedSettings = group(FeedSettings)


@attrs.frozen
class ClipLayout:
    """Folders of a dataset under its root, as patterns such as `audio/train/*`.

    Args:
        audio: Folders of wav files or stored spectrograms, in all known layouts.
        frames: Folders of frame folders or hdf5 files.
        videos: Videos from which `prepare` makes both.
        bases: Folders under the root in which the patterns are tried; `.` is the root itself.
        prepare: Command that makes wav files and frames; `{root}` stands for the data root.
    """

    audio: tuple[str, ...]
    frames: tuple[str, ...]
    videos: tuple[str, ...]
    bases: tuple[str, ...]
    prepare: str

    def find(self, root: Path, settings: ClipSettings) -> "Folders":
        """Find the folders that exist.

        Raises:
            RecipeError: If there are none; if there are videos, the fix is `prepare`.
        """
        frames = existing(root, settings.visual_dir or self._below(self.frames))
        folders = Folders(
            existing(root, settings.audio_dir or self._below(self.audio)),
            frames if settings.visual_dir else tuple(filter(_holds_clips, frames)),
        )
        if folders.audio and folders.frames:
            return folders
        if any(path.is_file() for pattern in self._below(self.videos) for path in root.glob(pattern)):
            raise RecipeError(
                f"{root} should hold audio and frames",
                found="videos that are not prepared yet",
                fix=f"run `{self.prepare.format(root=root)}`",
            )
        missing = [
            f"{content} in {' or '.join(given or patterns[:SHOWN])} (`{flag}` names another folder)"
            for found, content, given, patterns, flag in (
                (folders.audio, "audio", settings.audio_dir, self.audio, "--audio-dir"),
                (folders.frames, "frames", settings.visual_dir, self.frames, "--visual-dir"),
            )
            if not found
        ]
        raise RecipeError(
            f"{root} should hold {'; '.join(missing)}; or videos in {' or '.join(self.videos[:SHOWN])}",
            found=listing(root),
            fix="point `--data-root` to the folder that holds them, or leave it out to train on a small synthetic set",
        )

    def find_videos(self, root: Path) -> tuple[Path, ...]:
        """List the videos in order.

        Raises:
            RecipeError: If there are none.
        """
        return find_videos(root, self._below(self.videos), shown=self.videos[:SHOWN])

    def find_file(self, root: Path, names: Sequence[str]) -> Path | None:
        """Return the first file with one of these names, relative to the root or one of the bases."""
        candidates = (root / base / name for name in names for base in self.bases)
        return next((path for path in candidates if path.is_file()), None)

    def _below(self, patterns: Sequence[str]) -> list[str]:
        return [pattern if base == "." else f"{base}/{pattern}" for base in self.bases for pattern in patterns]


def _holds_clips(folder: Path) -> bool:
    """Return whether a folder has folders of frames or hdf5 files; some copies keep videos in one of the same name."""
    with os.scandir(folder) as entries:
        return any(entry.is_dir() or entry.name.endswith(HDF5_ENDING) for entry in entries)


@attrs.frozen
class Folders:
    """Folders that exist, of audio and of frames."""

    audio: tuple[Path, ...]
    frames: tuple[Path, ...]


def with_validation(split: Split, origin: str, *, seed: int, wanted: bool) -> tuple[Split, str]:
    """Hold out validation rows if they are wanted and there are none.

    Args:
        split: The split as it is listed.
        origin: The lists of the split, for the summary and messages.
        seed: Seed of the rows that are held out.
        wanted: Whether there should be a validation part; without, its rows are for training.

    Returns:
        The split, and its origin as a line of the summary.

    Raises:
        RecipeError: If the classes are too small for that.
    """
    if not wanted:
        return split.without_validation(), f"{origin}; nothing held out for validation"
    if split.val:
        return split, f"{origin}, validation part included"
    train, val = hold_out(split.train, VAL_SHARE, seed)
    if not val:
        raise RecipeError(
            f"A class should have enough training clips to hold out {VAL_SHARE:.0%} of them",
            found=f"{len(train)} clips, too few of every class, in {origin}",
            fix="list more clips, or add `--no-validation --select test`",
        )
    share = f"{VAL_SHARE:.0%} of every class of the training part"
    return Split(train, val, split.test), f"{origin}; for validation {share}, seed {seed}"


def open_clips(
    settings: Settings[Any],
    clips: ClipSettings,
    root: Path,
    folders: Folders,
    split: Split,
    classes: tuple[str, ...],
    lines: Sequence[str],
    *,
    faults: Mapping[str, str],
) -> Data:
    """Find and open the clips of a split.

    Args:
        settings: Settings of the run.
        clips: Those among them that describe the clips.
        root: Folder of the dataset.
        folders: Its folders of audio and frames.
        split: The listed clips of each part.
        classes: Class names in the order of their indices.
        lines: First lines of the summary of the data.
        faults: Known faults by `clip_key`; the summary names the clips that are kept.
    """
    read = front_end(clips.audio, settings.optimisation.seed)
    check_kind(folders.audio, read)
    names = [row.name for part in (split.train, split.val, split.test) for row in part]
    key = ListedKey.of(names)
    sources = (
        audio_source(folders.audio, read, key=key),
        frames_source(folders.frames, Frames(clips.frames, clips.image_size), key=key, choice=clips.frame_choice),
    )
    known = {name: faults[clip_key(name)] for name in names if clip_key(name) in faults}
    return open_samples(
        settings, root, classes, split, sources, lines, min_found=clips.min_found, feeding=clips.feed, faults=known
    )


def check_kind(folders: Sequence[Path], read: FrontEnd, *, named: str | None = None) -> None:
    """Check that there are files for a front end.

    Args:
        folders: Folders of sound.
        read: The front end.
        named: Folder to complete, for a recipe whose folders have no flag.

    Raises:
        RecipeError: If there are none; the message names a front end that fits the files in the folders.
    """
    if index_files(folders, read.endings):
        return
    others = Counter(path.suffix for folder in folders for path in folder.iterdir() if path.is_file())
    found = ", ".join(f"{count:,} {ending} files" for ending, count in others.items()) or "none"
    fix = f"complete {named}" if named else "complete the data, or name the folder with `--audio-dir`"
    if set(others) & set(StoredSpectrogram.endings):
        fix = "read the spectrograms with `--audio-frontend stored`"
    elif ".wav" in others:
        other = "without `--audio-frontend`" if named else "with `--audio-frontend fbank` or `stft16k`"
        fix = f"read the wav files {other}"
    elif set(others) & set(OTHER_SOUND):
        fix = "convert them to wav, for example with ffmpeg, or run `prepare` on the videos, which writes wav files"
    raise RecipeError(f"{listed(folders)} should hold {' or '.join(read.endings)} files", found=found, fix=fix)


@attrs.frozen(kw_only=True)
class ClipPreparation(Preparation):
    """Settings of a `prepare` that scales frames down."""

    short_side: int | None = flag(None, SHORT_SIDE, number=positive_int, metavar="PIXELS")


def flat_job(root: Path, video: Path) -> VideoJob:
    """Return the job that puts the frames of a video into visual/NAME/ and its sound into audio/NAME.wav."""
    return VideoJob(video, root / "visual" / video.stem, root / "audio" / f"{video.stem}.wav")
