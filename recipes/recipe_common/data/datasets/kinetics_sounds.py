"""Kinetics-Sounds on disk: its classes, the layouts in use, and which clips are for training."""

from collections.abc import Mapping
from pathlib import Path

from recipe_common.data.prepare.video import VideoJob, find_videos
from recipe_common.data.samples.audiovisual import existing
from recipe_common.data.samples.clips import Places, flat_job
from recipe_common.data.samples.splits import Split
from recipe_common.data.samples.youtube import (
    class_name,
    clip_key,
    disjoint,
    read_clip_list,
    read_database,
    rows_of_folders,
)
from recipe_common.errors import RecipeError

# Alphabetical: the integers in the lists of the OGM-GE code.
CLASSES = (
    "blowing_nose",
    "blowing_out_candles",
    "bowling",
    "chopping_wood",
    "dribbling_basketball",
    "laughing",
    "mowing_lawn",
    "playing_accordion",
    "playing_bagpipes",
    "playing_bass_guitar",
    "playing_clarinet",
    "playing_drums",
    "playing_guitar",
    "playing_harmonica",
    "playing_keyboard",
    "playing_organ",
    "playing_piano",
    "playing_saxophone",
    "playing_trombone",
    "playing_trumpet",
    "playing_violin",
    "playing_xylophone",
    "ripping_paper",
    "shoveling_snow",
    "shuffling_cards",
    "singing",
    "stomping_grapes",
    "tap_dancing",
    "tapping_guitar",
    "tapping_pen",
    "tickling",
)
BASES = (".", "kinect_sound", "data", "data/KineticSound", "data/kinect_sound")
CLASS_FOLDERS = {
    "train": ("audio/train/*", "visual/train_img/Image-01-FPS/*"),
    "test": ("audio/test/*", "visual/val_img/Image-01-FPS/*"),
}
PLACES = Places(
    audio=(
        "audio",
        "audio_spec",
        "train_spec",
        "test_spec",
        "audio/train",
        "audio/test",
        "audio/train/*",
        "audio/test/*",
    ),
    frames=("visual", "hdf5", "visual/train_img/Image-01-FPS/*", "visual/val_img/Image-01-FPS/*"),
    videos=("videos/*.mp4", "videos/*/*.mp4", "train/*/*.mp4", "val/*/*.mp4", "test/*/*.mp4"),
    bases=BASES,
    prepare="python recipes/kinetics_sounds.py prepare --data-root {root}",
)
LISTS = {"train": "my_train.txt", "test": "my_test.txt"}
DATABASES = ("KS_train_val.json", "KS.json")
MEDIA = (".wav", ".npy", ".pkl", ".pt", ".hdf5", "")


def read_split(root: Path, train_list: str | None, test_list: str | None) -> tuple[Split, str]:
    """Return the split and where it comes from: lists, a json file, or folders that are named after classes."""
    train, test = list_files(root, {"train": train_list, "test": test_list})
    if train and test:
        rows = [read_clip_list(path, CLASSES) for path in (train, test)]
        return disjoint(Split(rows[0], (), rows[1])), f"{train}, {test}"
    if database := PLACES.find_file(root, DATABASES):
        return read_database(database, CLASSES), str(database)
    folders = {
        part: existing(root, [f"{base}/{it}" for base in BASES for it in places])
        for part, places in CLASS_FOLDERS.items()
    }
    parts = {part: rows_of_folders(folders[part], MEDIA, CLASSES) for part in folders}
    if train or test or not all(parts.values()):
        found = train or test or f"{len(parts['train'])} and {len(parts['test'])} clips in such folders"
        raise RecipeError(
            f"Expected in {root}: {' and '.join(LISTS.values())}, or {' or '.join(DATABASES)}, or folders such as "
            f"audio/train/CLASS and audio/test/CLASS. Found {found}. "
            "Fix: add what is missing, or name the lists with --train-list and --test-list."
        )
    names = {class_name(folder.name) for found in folders.values() for folder in found}
    others = ", ".join(sorted(names - set(CLASSES)))
    left_out = f"; left out, as they are none of the 31 classes: {others}" if others else ""
    return disjoint(Split(parts["train"], (), parts["test"])), f"class folders{left_out}"


def list_files(root: Path, given: Mapping[str, str | None]) -> list[Path | None]:
    """Return the training and the test list: those that flags name, else those under the root, else None."""
    return [Path(path) if (path := given[part]) else PLACES.find_file(root, [name]) for part, name in LISTS.items()]


def video_jobs(root: Path) -> list[VideoJob]:
    """Choose the videos of this dataset among those of Kinetics-400: by the lists, or else by their class folders."""
    videos = find_videos(root, PLACES.videos)
    lists = [path for path in list_files(root, dict.fromkeys(LISTS)) if path]
    keys = {clip_key(row.name) for path in lists for row in read_clip_list(path, CLASSES)}
    if keys:
        jobs = [flat_job(root, video) for video in videos if clip_key(video.stem) in keys]
    else:
        jobs = [class_job(root, video) for video in videos if is_in_class_folder(video)]
    if not jobs:
        raise RecipeError(
            f"Expected videos of the {len(keys):,} listed clips, or train/CLASS/NAME.mp4 and val/CLASS/NAME.mp4, in "
            f"{root}. Found {len(videos):,} others, such as {videos[0]}. Fix: add the lists or the class folders."
        )
    return jobs


def is_in_class_folder(video: Path) -> bool:
    """Say whether a video is in PART/CLASS/, of a class of this dataset."""
    return class_name(video.parent.name) in CLASSES and video.parents[1].name in ("train", "val", "test")


def class_job(root: Path, video: Path) -> VideoJob:
    """Put audio and frames where the DGL code has them, so that the folders tell the classes."""
    part, label = ("train" if video.parents[1].name == "train" else "test"), class_name(video.parent.name)
    audio, frames = (root / pattern.replace("*", label) for pattern in CLASS_FOLDERS[part])
    return VideoJob(video, frames / video.stem, audio / f"{video.stem}.wav")
