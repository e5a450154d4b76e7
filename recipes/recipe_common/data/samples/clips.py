"""What recipes of audio-visual clips that are found by key share: flags, the data of a run, and `prepare`."""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from recipe_common.arguments import positive_int, seed_int, share_float
from recipe_common.data.prepare.video import VideoJob
from recipe_common.data.readers.audio import AUDIO_DEFAULTS, FrontEnd, add_audio_arguments, front_end
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
from recipe_common.models.fusion import FUSIONS, describe
from recipe_common.recipe import Data

VAL_SHARE = 0.1
"""Of every class of the training list, where no list says what is for validation."""

CLIP_DEFAULTS: dict[str, Any] = {
    **AUDIO_DEFAULTS,
    "audio_dir": None,
    "visual_dir": None,
    "split_seed": 0,
    "min_found": 0.8,
    "frames": 3,
    "frame_choice": "segments",
    "image_size": 224,
    "fusion": "concat",
}
"""Values of the flags of `add_clip_arguments`, besides --audio-frontend."""


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

    def find(self, root: Path, args: argparse.Namespace) -> "Folders":
        """Find the folders that exist.

        Raises:
            RecipeError: Saying what is expected and found, and whether `prepare` is the fix.
        """
        folders = Folders(
            existing(root, args.audio_dir or self._below(self.audio)),
            existing(root, args.visual_dir or self._below(self.frames)),
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
                (folders.audio, "audio", args.audio_dir, self.audio, "--audio-dir"),
                (folders.frames, "frames", args.visual_dir, self.frames, "--visual-dir"),
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


def add_clip_arguments(add: Callable[..., Any]) -> None:
    """Add the flags of all these recipes.

    Args:
        add: `add_argument` of a parser or group.
    """
    add_audio_arguments(add)
    add("--audio-dir", nargs="+", metavar="DIR", help="under the data root, instead of the known layouts; may hold *")
    add("--visual-dir", nargs="+", metavar="DIR", help="likewise, of the frame folders")
    add("--split-seed", type=seed_int, help="decides what is held out for validation, independently of --seed")
    add("--min-found", type=share_float, metavar="SHARE", help="share of the listed clips that must be on disk")
    add("--frames", type=positive_int, help="frames per clip")
    add("--frame-choice", choices=FRAME_CHOICES, help="random or centre ones of segments, their starts, or the first")
    add("--image-size", type=positive_int, metavar="PIXELS")
    add("--fusion", choices=FUSIONS)


def with_validation(split: Split, origin: str, args: argparse.Namespace) -> tuple[Split, str]:
    """Hold out validation rows if the flags ask for them and there are none; return the split and where it is from.

    Raises:
        RecipeError: If the classes are too small for that.
    """
    if not args.validation:
        return split.without_validation(), f"{origin}; nothing held out for validation"
    if split.val:
        return split, f"{origin}, validation part included"
    train, val = hold_out(split.train, VAL_SHARE, args.split_seed)
    if not val:
        raise RecipeError(
            f"Expected enough training clips of a class to hold out {VAL_SHARE:.0%} of them. "
            f"Found {len(train)} clips, too few of every class, in {origin}. "
            "Fix: list more clips, or add --no-validation --select test."
        )
    share = f"{VAL_SHARE:.0%} of every class of the training part"
    return Split(train, val, split.test), f"{origin}; for validation {share}, seed {args.split_seed}"


def open_clips(
    args: argparse.Namespace, root: Path, folders: Folders, split: Split, classes: tuple[str, ...], lines: Sequence[str]
) -> Data:
    """Find and open the clips of a split.

    Args:
        args: With the flags of `add_clip_arguments` and `add_feed_arguments`.
        root: Of the data.
        folders: Where the media are.
        split: Which clips there should be.
        classes: Class names in the order of their indices.
        lines: What the summary of the data begins with.
    """
    read = front_end(args)
    check_kind(folders.audio, read)
    sources = (
        audio_source(folders.audio, read, key=clip_key),
        frames_source(folders.frames, Frames(args.frames, args.image_size), key=clip_key, choice=args.frame_choice),
    )
    return open_samples(args, root, classes, split, sources, lines)


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


def add_short_side(parser: argparse.ArgumentParser) -> None:
    """Add the flag of `prepare` that scales frames down."""
    help_text = "scale frames down until their shorter side has this many pixels; default: keep them, as the papers do"
    parser.add_argument("--short-side", type=positive_int, metavar="PIXELS", help=help_text)


def flat_job(root: Path, video: Path) -> VideoJob:
    """Put the frames of a video into visual/NAME/ and its sound into audio/NAME.wav."""
    return VideoJob(video, root / "visual" / video.stem, root / "audio" / f"{video.stem}.wav")


def balance(args: argparse.Namespace) -> Mapping[str, Any]:
    """Describe `audio_visual_net` to the optimizer."""
    return describe(("audio", "visual"), args.fusion)
