"""Videos of Kinetics-Sounds among those of Kinetics-400, for `prepare`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from recipe_common.data.datasets.kinetics_sounds import (
    CLASS_FOLDERS,
    CLASSES,
    LAYOUT,
    LISTS,
    REPLACEMENT,
    VIDEO_PARTS,
    class_name,
    list_files,
    read_annotations,
    read_clip_list,
)
from recipe_common.data.prepare.video import VideoJob
from recipe_common.data.samples.clips import flat_job
from recipe_common.data.samples.youtube import ListedKey, clip_key
from recipe_common.errors import RecipeError

TEST = "test"


def video_jobs(root: Path) -> list[VideoJob]:
    """Choose the videos of this dataset among those of Kinetics-400.

    They are chosen by the lists, or else by their class folders, or else by the annotations of Kinetics-400.

    Raises:
        RecipeError: If there are none.
    """
    videos = LAYOUT.find_videos(root)
    lists = [path for path in list_files(root, dict.fromkeys(LISTS)) if path]
    names = [row.name for path in lists for row in read_clip_list(path, CLASSES)]
    jobs = listed_jobs(root, videos, names) if names else class_jobs(root, videos)
    if not jobs and not names and (annotated := read_annotations(root)):
        names = [row.name for part in (annotated[0].train, annotated[0].test) for row in part]
        jobs = listed_jobs(root, videos, names)
    if not jobs:
        raise RecipeError(
            f"{root} should hold videos of the {len(names):,} listed clips"
            if names
            else f"{root} should hold train/CLASS/NAME.mp4 and val/CLASS/NAME.mp4, or lists that name the videos",
            found=f"{len(videos):,} others, such as {videos[0]}",
            fix="add my_train.txt and my_test.txt, or the annotations of Kinetics-400 as annotations/train.csv and "
            "val.csv, or sort the videos into class folders",
        )
    return jobs


def listed_jobs(root: Path, videos: Sequence[Path], names: Iterable[str]) -> list[VideoJob]:
    """Return a job for each listed clip that has a video, with sound and frames in audio/ and visual/."""
    key = ListedKey.of(names)
    chosen: dict[str, Path] = {}
    for video in sorted(videos, key=lambda video: video.parent.name != REPLACEMENT):
        if (clip := key(video.stem)) in key.keys:
            chosen.setdefault(clip, video)
    return [flat_job(root, video) for video in sorted(chosen.values())]


def class_jobs(root: Path, videos: Sequence[Path]) -> list[VideoJob]:
    """Return a job for each video in PART/CLASS/, of our classes, in the layout of Wei et al. (ICCV 2025).

    The validation part of Kinetics-400 is the test part. Its folder `test` counts only where there is no `val`, and a
    line is printed where there is one.
    """
    parts = _parts(videos)
    replaced = {clip_key(video.stem): video for video in videos if video.parent.name == REPLACEMENT}
    jobs = []
    for video in videos:
        part, label = parts.get(video.parents[1].name), class_name(video.parent.name)
        if part is not None and label in CLASSES:
            audio, frames = (root / pattern.replace("*", label) for pattern in CLASS_FOLDERS[part])
            source = replaced.get(clip_key(video.stem), video)
            jobs.append(VideoJob(source, frames / video.stem, audio / f"{video.stem}.wav"))
    return jobs


def _parts(videos: Sequence[Path]) -> Mapping[str, str]:
    """Return the part of each folder name; without `test`, where another folder is the test part."""
    counts = Counter(video.parents[1].name for video in videos if class_name(video.parent.name) in CLASSES)
    if not counts[TEST]:
        return VIDEO_PARTS
    other = next((name for name, part in VIDEO_PARTS.items() if part == TEST != name and counts[name]), None)
    if other is None:
        print(f"the test part: videos in {TEST}/, as there are none in val/")
        return VIDEO_PARTS
    print(f"the test part: videos in {other}/; the {counts[TEST]:,} in {TEST}/ are left out")
    return {name: part for name, part in VIDEO_PARTS.items() if name != TEST}
