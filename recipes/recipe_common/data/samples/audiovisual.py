"""Audio and frames of clips on disk: sound files, folders of jpg files, hdf5 files of jpg bytes.

`audio_source` and `frames_source` list folders once and find clips by a key of their names, because datasets are
unpacked in many ways.
"""

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import cast

import attrs
from torch import Tensor

from recipe_common.data.cache.headers import Facts
from recipe_common.data.cache.pipelines import FramesPipeline, sound_pipeline
from recipe_common.data.readers.audio import FrontEnd
from recipe_common.data.readers.decoding import decoding
from recipe_common.data.readers.frames import (
    CLIP_HEADER,
    FRAME_NAME,
    Frames,
    frame_files,
    read_clip_header,
    read_image,
    read_picture_header,
    segments,
)
from recipe_common.data.readers.non_files import file_error
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.readers.unbounded import check_heaps, check_lengths
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sources import Source
from recipe_common.errors import RecipeError, require

FRAME_CHOICES = ("segments", "start", "first")
HDF5_ENDING = ".hdf5"
HDF5_FRAMES = "video"
"""Dataset in an hdf5 file with the bytes of one jpg file per frame."""


def existing(root: Path, patterns: Iterable[str]) -> tuple[Path, ...]:
    """Return the folders that match a pattern such as `audio/train/*`, in the order of the patterns.

    Args:
        root: Folder under which the patterns are tried.
        patterns: The patterns; `.` is the root itself, and an absolute one is tried as it is. A wildcard finds no
            hidden folders.
    """
    return tuple(dict.fromkeys(path for pattern in patterns for path in _matches(root, Path(pattern))))


def _matches(root: Path, pattern: Path) -> list[Path]:
    if pattern.is_absolute():
        root, pattern = Path(pattern.anchor), pattern.relative_to(pattern.anchor)
    if not pattern.parts:
        return [root] if root.is_dir() else []
    # With the slash at its end, glob skips files without asking for the status of each.
    found = sorted(root.glob(f"{pattern}/"))
    # A hidden folder that is named, or the root, was given on purpose.
    return [path for path in found if not path.name.startswith(".")] if has_magic(pattern.name) else found


def audio_source(folders: Sequence[Path], read: FrontEnd, *, key: Callable[[str], str] = str) -> Source:
    """Return the source of the sound files, or stored spectrograms, of clips.

    Args:
        folders: Folders of the files; of two files with the same key the first one counts.
        read: Front end; files with its endings count. Stored spectrograms must have the shape of the first one.
        key: Returns the key of a name: the part that a clip has in common in the list and on disk.
    """
    files = index_files(folders, read.endings, key)
    if isinstance(read, StoredSpectrogram) and read.shape is None:
        read = _of_one_shape(read, files)
    pipeline = partial(sound_pipeline, read)
    return Source("audio", read.what, listed(folders), Indexed(files, key), read, read.check, pipeline, read.header)


def _of_one_shape(read: StoredSpectrogram, files: Mapping[str, Path]) -> StoredSpectrogram:
    for name in sorted(files):
        # A damaged file is reported when it is read or checked, as --skip-bad decides.
        with suppress(RecipeError):
            return read.as_in(files[name])
    return read


def frames_source(
    folders: Sequence[Path], frames: Frames, *, key: Callable[[str], str] = str, choice: str = "segments"
) -> Source:
    """Return the source of the frames of clips: folders of numbered jpg files, or hdf5 files of jpg bytes.

    Args:
        folders: Folders of the clips; of two with the same key the first one counts.
        frames: Reader of the frames that are chosen.
        key: As in `audio_source`.
        choice: "segments": one frame of each of `frames.count` equal segments, random in training, the centre one in
            evaluation; "start": the first frame of each segment; "first": the first frames of the clip.
    """
    entries = index_files(folders, ("", HDF5_ENDING), key)
    find = partial(_find_frames, Indexed(entries, key))
    read = partial(_read_frames, frames, choice)
    pipeline = partial(_frames_pipeline, frames, choice)
    header = attrs.evolve(CLIP_HEADER, read=_read_header)
    return Source("visual", "frames", listed(folders), find, read, _check_frames, pipeline, header)


def index_files(folders: Iterable[Path], endings: Sequence[str], key: Callable[[str], str] = str) -> dict[str, Path]:
    """List files by the key of their name without ending; the ending "" stands for folders. Hidden ones do not count.

    Each folder is listed once: a look-up for each of 200,000 files takes minutes on a network disk.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name, ending = (entry.name, "") if entry.is_dir() else os.path.splitext(entry.name)
                if ending in endings and not name.startswith("."):
                    found.setdefault(key(name), Path(entry.path))
    return found


@attrs.frozen
class Indexed:
    """Files of a dataset, found for a row of a list by the key of its name."""

    files: Mapping[str, Path]
    key: Callable[[str], str]

    def __call__(self, row: Row) -> Path | None:
        """Return the file, or None if there is none."""
        return self.files.get(self.key(row.name))


class StoredJpg(io.BytesIO):
    """A jpg file inside an hdf5 file, with a name for messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def hdf5_frames(path: Path) -> tuple[StoredJpg, ...]:
    """Read the frames of one clip, not decoded, from an hdf5 file with a dataset `video` of jpg bytes.

    Raises:
        RecipeError: If the file is damaged or holds no such dataset.
    """
    return _hdf5_frames(path, None)[1]


def _hdf5_frames(path: Path, limit: int | None) -> tuple[int, tuple[StoredJpg, ...]]:
    """Return the number of frames, and the first ones."""
    with decoding(partial(_bad_hdf5, path)):
        check_heaps(path)
    with decoding(partial(_bad_hdf5, path)), require("h5py").File(path) as file:
        stored = file[HDF5_FRAMES]
        if stored.id.get_offset() is not None and stored.dtype.metadata:  # in one piece, of varying length
            check_lengths(path, stored.id.get_offset(), len(stored))
        first = enumerate(stored[:limit])
        count, frames = len(stored), tuple(StoredJpg(bytes(frame), f"{path}[{at}]") for at, frame in first)
    if not frames:
        raise _bad_hdf5(path, "no frames")
    return count, frames


def _bad_hdf5(path: Path, found: str) -> RecipeError:
    return file_error(
        path,
        f"{path} should be an hdf5 file with jpg bytes in `{HDF5_FRAMES}`",
        found=found,
        fix="restore the file",
        otherwise=", or leave its clip out with `--skip-bad`",
    )


def _find_frames(find: Indexed, row: Row) -> Path | None:
    """Return the folder or file of a clip; names of frames are not kept: for 200,000 clips they take a gigabyte."""
    path = find(row)
    if path is None or path.suffix == HDF5_ENDING:
        return path
    with os.scandir(path) as entries:
        return path if any(FRAME_NAME.fullmatch(entry.name) for entry in entries) else None


def _clip_frames(path: Path) -> tuple[Path, ...]:
    if path.suffix != HDF5_ENDING:
        return frame_files(path)
    return cast("tuple[Path, ...]", hdf5_frames(path))  # Pillow opens paths and files alike


def _read_frames(frames: Frames, choice: str, path: Path, *, seed: int | None) -> Tensor:
    return frames(choose(_clip_frames(path), frames.count, choice), seed=seed)


def choose(files: Sequence[Path], count: int, choice: str) -> Sequence[Path]:
    """Return the frames from which `Frames` takes `count`: all of them, or just as many.

    Args:
        files: All frames of a clip, in order.
        count: Frames that are taken.
        choice: One of `FRAME_CHOICES`, see `frames_source`.
    """
    if choice == "segments":
        return files
    return files[:count] if choice == "first" else [files[part[0]] for part in segments(len(files), count)]


def _check_frames(path: Path) -> None:
    for frame in _clip_frames(path):
        read_image(frame)


def _read_header(path: Path) -> Facts:
    if path.suffix != HDF5_ENDING:
        return read_clip_header(path)
    count, (first,) = _hdf5_frames(path, 1)
    read_picture_header(cast("Path", first))
    return [count]


def _frames_pipeline(frames: Frames, choice: str, short_side: int) -> FramesPipeline:
    pictures = partial(_chosen_frames, frames.count, choice)
    kept = "all of a clip" if choice == "segments" else f"{frames.count} of a clip, {choice}"
    return FramesPipeline(frames, short_side, _clip_files, pictures, kept)


def _chosen_frames(count: int, choice: str, path: Path) -> Sequence[Path]:
    return choose(_clip_frames(path), count, choice)


def _clip_files(path: Path) -> tuple[Path, ...]:
    return (path,) if path.suffix == HDF5_ENDING else frame_files(path)


def listed(folders: Sequence[Path], shown: int = 2) -> str:
    """Return the first folders, and how many more there are, as text for messages."""
    more = f" and {len(folders) - shown} more" if len(folders) > shown else ""
    return ", ".join(str(folder) for folder in folders[:shown]) + more
