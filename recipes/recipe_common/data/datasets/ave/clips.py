"""Lists, folders and `prepare` for clips in which an event lasts for some of the seconds, as in AVE."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from recipe_common.data.prepare.video import VideoJob, find_videos, prepare_videos
from recipe_common.data.readers.frames import Frames
from recipe_common.data.readers.non_files import check_file
from recipe_common.data.samples.audiovisual import existing, frames_source
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sources import Source
from recipe_common.data.samples.splits import Split, random_split
from recipe_common.errors import RecipeError
from recipe_common.files import listing

LISTS = ("trainSet.txt", "valSet.txt", "testSet.txt")
ANNOTATIONS = "Annotations.txt"
COLUMNS = "class&video id&quality&start&end"
SECONDS = 10
"""Length of every clip."""
AUDIO, STORED, VIDEOS = "Audios", "Audio-1004-SE", "AVE"


VIDEO_PATTERNS = (
    f"{VIDEOS}/*.mp4",
    f"{VIDEOS}/*/*.mp4",  # each in a folder of its own, or in one of its class
    *(f"{part}/*/*.mp4" for part in ("train", "val", "test")),
)


@attrs.frozen
class EventFolders:
    """Folders of the dataset.

    Attributes:
        root: Folder that holds the others.
        audio: Folder of wav files of whole clips, or of stored spectrograms of events.
        frames: Folder that holds, for each event, a folder of the frames inside it.
        lists: Folder of the lists.
    """

    root: Path
    audio: Path
    frames: Path
    lists: Path


def read_events(path: Path, classes: Sequence[str]) -> tuple[Row, ...]:
    """Read a list of `class&video id&quality&start&end`, with or without a header; seconds are whole numbers.

    A video that is listed several times, with several classes, gives several rows. Their `extra` is (start, end).

    Raises:
        RecipeError: With file and line number, for a row of another width, an unknown class or an impossible time.
    """
    check_file(path, f"{path} should be a readable list", may_be_empty=True)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} should be a readable list", found=str(error), fix="restore the file") from error
    rows = []
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.split("&")]
        if not any(cells) or (number == 1 and cells[0] not in classes and not cells[-1].isdigit()):
            continue
        rows.append(_event(cells, classes, f"{path}:{number}"))
    if not rows:
        raise RecipeError(f"{path} should have rows of `{COLUMNS}`", found="none", fix="restore the file")
    return tuple(rows)


def _event(cells: Sequence[str], classes: Sequence[str], where: str) -> Row:
    if len(cells) != 5 or not all(cells):
        raise RecipeError(f"{where} should be `{COLUMNS}`", found=repr("&".join(cells)), fix="correct the line")
    label, name, _, start, end = cells
    if label not in classes:
        raise RecipeError(
            f"{where} should have one of the classes {', '.join(classes)}", found=repr(label), fix="correct the line"
        )
    if not (start.isdigit() and end.isdigit() and int(start) <= int(end) <= SECONDS and int(start) < SECONDS):
        raise RecipeError(
            f"{where} should have whole seconds, 0 <= start <= end <= {SECONDS}",
            found=f"{start!r} to {end!r}",
            fix="correct the line",
        )
    return Row(name, label, (start, end))


def seconds_of(row: Row) -> tuple[int, int]:
    """Return the first second of an event, and the second after its last one.

    The published lists hold an event from 0 to 0. It counts as one second; Fan et al. take frames of it, too.
    """
    start, end = int(row.extra[0]), int(row.extra[1])
    return start, max(end, start + 1)


def first_of_each(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the first row of each video; other code reads every video once, too, with the first class in the lists."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(row.name, row)
    return tuple(kept.values())


def event_split(folder: Path, classes: Sequence[str], seed: int, *, listed: bool, overlap: bool) -> tuple[Split, str]:
    """Return the split of the three lists, or a random one of all the rows that are listed.

    Args:
        folder: Folder with the three lists, or with `Annotations.txt`.
        classes: Class names.
        seed: Seed of the random split.
        listed: Whether the split is that of the three lists; with `Annotations.txt` alone it is random in any case.
        overlap: Whether videos stay in train that are in val or test as well, as another event.

    Returns:
        The split, with one row per video in each part, and a line about its origin.
    """
    parts = {name: read_events(folder / name, classes) for name in LISTS if (folder / name).is_file()}
    if len(parts) < len(LISTS):
        listed, parts = False, {ANNOTATIONS: read_events(folder / ANNOTATIONS, classes)}
    rows = [row for part in parts.values() for row in part]
    if not listed:
        unique = first_of_each(rows)
        line = f"80/10/10 % of every class of {folder}, seed {seed}; {len(rows) - len(unique)} repeated videos left out"
        return random_split(unique, seed), line
    train, val, test = (first_of_each(parts[name]) for name in LISTS)
    held = set() if overlap else {row.name for row in (*val, *test)}
    kept = tuple(row for row in train if row.name not in held)
    repeated = len(rows) - len(train) - len(val) - len(test)
    note = "stay in train" if overlap else f"left out of train ({len(train) - len(kept)})"
    line = f"lists in {folder}; {repeated} repeated videos left out, those of train that are in val or test {note}"
    return Split(kept, val, test), line


def find_event_folders(root: Path, fps: int, *, stored: bool, prepare: str) -> EventFolders:
    """Find lists, sound and frames under `root`, or in the folder `AVE_Dataset` in it.

    Args:
        root: The data root.
        fps: Frames per second, a part of the name of the frame folder.
        stored: Whether sound is read as stored spectrograms, not as wav files.
        prepare: Command that writes sound and frames of the videos, for messages.

    Raises:
        RecipeError: If a folder is absent; the fix is `prepare` where there are videos.
    """
    base = root / "AVE_Dataset" if (root / "AVE_Dataset").is_dir() else root
    found = EventFolders(base, base / (STORED if stored else AUDIO), base / frames_name(fps), find_lists(root, base))
    if found.audio.is_dir() and found.frames.is_dir():
        return found
    missing = [str(folder) for folder in (found.audio, found.frames) if not folder.is_dir()]
    has_videos = existing(base, [VIDEOS]) or any(next(base.glob(pattern), None) for pattern in VIDEO_PATTERNS)
    if has_videos and not stored:
        raise RecipeError(
            f"{' and '.join(missing)} should be folders",
            found=f"videos that are not prepared yet, in {base}",
            fix=f"run `{prepare}`",
        )
    raise RecipeError(
        f"{' and '.join(missing)} should be folders",
        found=f"in {base}: {listing(base)}",
        fix=f"point --data-root to the folder that holds {VIDEOS}/, {AUDIO}/ and the lists, choose another "
        "--audio-frontend, or leave --data-root out to train on a small synthetic set",
    )


def find_lists(root: Path, base: Path) -> Path:
    """Return the folder of the lists.

    Raises:
        RecipeError: If there are none.
    """
    folders = (base, root, root / "data" / "AVE")
    for folder in folders:
        if all((folder / name).is_file() for name in LISTS) or (folder / ANNOTATIONS).is_file():
            return folder
    raise RecipeError(
        f"{base} should hold {', '.join(LISTS)} or {ANNOTATIONS}",
        found=listing(base),
        fix="copy them there from the AVE download, or point --data-root to its folder",
    )


def frames_name(fps: int) -> str:
    """Return the folder name of the frames inside events, as in the code of Fan et al. and Wei et al. (ICCV 2025)."""
    return f"Image-{fps:02d}-FPS-SE"


@attrs.frozen
class EventNames:
    """Names of the folders of frames.

    The event that is listed first for a video has the folder `<video id>`, as in the code of Fan et al. (CVPR 2023) and
    Wei et al. (ICCV 2025). Each event at other seconds has a folder `<video id>.<start>-<end>`.

    Attributes:
        first: Seconds of the first event, by video id.
    """

    first: Mapping[str, tuple[int, int]]

    def __call__(self, row: Row) -> str:
        """Return the name of the folder with the frames of a row."""
        start, end = seconds_of(row)
        return row.name if (start, end) == self.first.get(row.name) else f"{row.name}.{start:02d}-{end:02d}"


def read_lists(folder: Path, classes: Sequence[str]) -> tuple[tuple[Row, ...], ...]:
    """Read the lists in a folder, those of the three parts first."""
    return tuple(read_events(folder / name, classes) for name in (*LISTS, ANNOTATIONS) if (folder / name).is_file())


def event_names(lists: Iterable[Iterable[Row]]) -> EventNames:
    """Return the names of the folders of all events in `read_lists`."""
    return EventNames({row.name: seconds_of(row) for row in first_of_each(row for rows in lists for row in rows)})


def event_frames_source(folder: Path, frames: Frames, names: EventNames, *, choice: str) -> Source:
    """Return the source of the frames of events.

    An event without a folder of its own has that of its video, which is all that folders made by other code have.

    Args:
        folder: Folder of all folders of frames.
        frames: Reader of the frames that are chosen.
        names: Names of the folders.
        choice: As in `frames_source`.
    """
    source = frames_source([folder], frames, choice=choice)
    return attrs.evolve(source, find=partial(_find_frames, source.find, names))


def _find_frames(find: Callable[[Row], Any], names: EventNames, row: Row) -> Any:
    own = find(attrs.evolve(row, name=names(row)))
    return find(row) if own is None else own


def borrowed_frames(folder: Path, split: Split, names: EventNames, prepare: str) -> tuple[str, ...]:
    """Return a line about the events that have no folder of their own, so that they have frames of another event.

    Args:
        folder: Folder of all folders of frames.
        split: Rows of each part.
        names: Names of the folders.
        prepare: Command that writes the folders.

    Returns:
        One line, or none if there is no such event.
    """
    rows = [row for part in (split.train, split.val, split.test) for row in part if names(row) != row.name]
    borrowed = [row.name for row in rows if not (folder / names(row)).is_dir() and (folder / row.name).is_dir()]
    if not borrowed:
        return ()
    return (
        f"{len(borrowed)} events have the frames of another event of their video, such as {borrowed[0]}: "
        f"`{prepare}` writes their own",
    )


def prepare_events(root: Path, classes: Sequence[str], *, fps: int, workers: int, short_side: int | None = None) -> int:
    """Write the sound of every video and the frames of its events; files that exist are kept.

    Args:
        root: The data root.
        classes: Class names.
        fps: Frames per second of the event that are kept; more for short events, see `write_frames`.
        workers: Number of processes.
        short_side: Shorter side in pixels to which larger frames are scaled down; None keeps their size.

    Returns:
        The exit status of `run_prepare`.
    """
    base = root / "AVE_Dataset" if (root / "AVE_Dataset").is_dir() else root
    lists = read_lists(find_lists(root, base), classes)
    names, folder = event_names(lists), base / frames_name(fps)
    events: dict[str, dict[Path, tuple[int, int]]] = {}
    for row in (row for rows in lists for row in first_of_each(rows)):
        events.setdefault(row.name, {})[folder / names(row)] = seconds_of(row)
    jobs = []
    for video in find_videos(base, VIDEO_PATTERNS):
        if video.stem in events:
            frames, *more = events[video.stem]
            jobs.append(VideoJob(video, frames, base / AUDIO / f"{video.stem}.wav", tuple(more)))
    seconds = {frames: times for folders in events.values() for frames, times in folders.items()}
    return prepare_videos(base, jobs, fps=fps, workers=workers, short_side=short_side, seconds=seconds)
