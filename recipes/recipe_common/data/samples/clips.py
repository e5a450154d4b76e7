"""What recipes of audio-visual clips that are found by key share: flags, the data of a run, and `prepare`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from recipe_common.arguments import positive_int, seed_int, share_float
from recipe_common.data.cache.feed import FeedSettings
from recipe_common.data.prepare.engine import Preparation
from recipe_common.data.prepare.video import VideoJob
from recipe_common.data.readers.audio import AudioSettings, FrontEnd, front_end
from recipe_common.data.readers.frames import Frames
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.samples.assemble import open_samples
from recipe_common.data.samples.audiovisual import (
    FRAME_CHOICES,
    audio_source,
    existing,
    frames_source,
    index_files,
    listed,
)
from recipe_common.data.samples.splits import Split, hold_out
from recipe_common.data.samples.youtube import clip_key
from recipe_common.errors import RecipeError
from recipe_common.files import listing
from recipe_common.models.fusion import FUSIONS
from recipe_common.recipe import Data
from recipe_common.settings.declaration import flag, group
from recipe_common.settings.shared import Settings

VAL_SHARE = 0.1
"""Of every class of the training list, where no list says what is for validation."""
SHORT_SIDE = "scale frames down until their shorter side has this many pixels; default: keep them, as the papers do"


@attrs.frozen(kw_only=True)
class ClipSettings:
    """Settings of all these recipes."""

    audio: AudioSettings = group(AudioSettings)
    audio_dir: tuple[str, ...] | None = flag(
        None, "under the data root, instead of the known layouts; may hold *", metavar="DIR"
    )
    visual_dir: tuple[str, ...] | None = flag(None, "likewise, of the frame folders", metavar="DIR")
    split_seed: int = flag(0, "decides what is held out for validation, independently of --seed", number=seed_int)
    min_found: float = flag(0.8, "share of the listed clips that must be on disk", number=share_float, metavar="SHARE")
    frames: int = flag(3, "frames per clip", number=positive_int)
    frame_choice: str = flag(
        "segments", "random or centre ones of segments, their starts, or the first", choices=FRAME_CHOICES
    )
    image_size: int = flag(224, number=positive_int, metavar="PIXELS")
    fusion: str = flag("concat", choices=FUSIONS)
    feed: FeedSettings = group(FeedSettings)


@attrs.frozen
class ClipLayout:
    """Where the media of a dataset are under its root, as patterns such as `audio/train/*`.

    Args:
        audio: Folders of wav files or stored spectrograms, in any of the layouts that are known.
        frames: Folders of frame folders or hdf5 files.
        videos: Files that `prepare` makes both from.
        bases: Folders under the root that the patterns are tried in, the root itself being `.`.
        prepare: The command that makes wav files and frames; `{root}` stands for the data root.
    """

    audio: tuple[str, ...]
    frames: tuple[str, ...]
    videos: tuple[str, ...]
    bases: tuple[str, ...]
    prepare: str

    def find(self, root: Path, settings: ClipSettings) -> "Folders":
        """Find the folders that exist.

        Raises:
            RecipeError: Saying what is expected and found, and whether `prepare` is the fix.
        """
        folders = Folders(
            existing(root, settings.audio_dir or self._below(self.audio)),
            existing(root, settings.visual_dir or self._below(self.frames)),
        )
        if folders.audio and folders.frames:
            return folders
        if any(path.is_file() for pattern in self.videos for path in root.glob(pattern)):
            raise RecipeError(
                f"Expected audio and frames in {root}. Found videos that are not prepared yet. "
                f"Fix: {self.prepare.format(root=root)}"
            )
        missing = [
            f"{what} in {' or '.join(given or patterns)} ({flag} names another folder)"
            for found, what, given, patterns, flag in (
                (folders.audio, "audio", settings.audio_dir, self.audio, "--audio-dir"),
                (folders.frames, "frames", settings.visual_dir, self.frames, "--visual-dir"),
            )
            if not found
        ]
        raise RecipeError(
            f"Expected in {root}: {'; '.join(missing)}; or videos in {' or '.join(self.videos)}. "
            f"Found {listing(root)}. Fix: point --data-root to the folder that holds them, or leave it out to train on "
            "a small synthetic set."
        )

    def find_file(self, root: Path, names: Sequence[str]) -> Path | None:
        """Return the first file with one of these names, relative to the root or one of the bases."""
        candidates = (root / base / name for name in names for base in self.bases)
        return next((path for path in candidates if path.is_file()), None)

    def _below(self, patterns: Sequence[str]) -> list[str]:
        return [pattern if base == "." else f"{base}/{pattern}" for base in self.bases for pattern in patterns]


@attrs.frozen
class Folders:
    """Where the media are."""

    audio: tuple[Path, ...]
    frames: tuple[Path, ...]


def with_validation(split: Split, origin: str, *, seed: int, wanted: bool) -> tuple[Split, str]:
    """Hold out validation rows if they are wanted and there are none; return the split and where it is from.

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
            f"Expected enough training clips of a class to hold out {VAL_SHARE:.0%} of them. "
            f"Found {len(train)} clips, too few of every class, in {origin}. "
            "Fix: list more clips, or add --no-validation --select test."
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
) -> Data:
    """Find and open the clips of a split.

    Args:
        settings: Of the call.
        clips: Those among them that describe the clips.
        root: Of the data.
        folders: Where the media are.
        split: Which clips there should be.
        classes: Class names in the order of their indices.
        lines: What the summary of the data begins with.
    """
    read = front_end(clips.audio, settings.optimisation.seed)
    check_kind(folders.audio, read)
    sources = (
        audio_source(folders.audio, read, key=clip_key),
        frames_source(folders.frames, Frames(clips.frames, clips.image_size), key=clip_key, choice=clips.frame_choice),
    )
    return open_samples(settings, root, classes, split, sources, lines, min_found=clips.min_found, feeding=clips.feed)


def check_kind(folders: Sequence[Path], read: FrontEnd) -> None:
    """Check that there are files for a front end.

    Raises:
        RecipeError: If there are none, with the front end that fits what is there.
    """
    if index_files(folders, read.endings):
        return
    others = Counter(path.suffix for folder in folders for path in folder.iterdir() if path.is_file())
    found = ", ".join(f"{count:,} {ending} files" for ending, count in others.items()) or "none"
    fix = "complete the data, or name the folder with --audio-dir"
    if set(others) & set(StoredSpectrogram.endings):
        fix = "read the spectrograms that are there with --audio-frontend stored"
    elif ".wav" in others:
        fix = "read the wav files that are there with --audio-frontend fbank or stft16k"
    raise RecipeError(f"Expected {' or '.join(read.endings)} files in {listed(folders)}. Found {found}. Fix: {fix}.")


@attrs.frozen(kw_only=True)
class ClipPreparation(Preparation):
    """Settings of a `prepare` that scales frames down."""

    short_side: int | None = flag(None, SHORT_SIDE, number=positive_int, metavar="PIXELS")


def flat_job(root: Path, video: Path) -> VideoJob:
    """Put the frames of a video into visual/NAME/ and its sound into audio/NAME.wav."""
    return VideoJob(video, root / "visual" / video.stem, root / "audio" / f"{video.stem}.wav")
