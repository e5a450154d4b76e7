"""Audio-visual clips on disk, and the dataset that reads them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import attrs
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.data.audio import Spectrogram, read_waveform
from common.data.frames import Frames, frame_files, read_image
from common.data.lists import Row
from common.data.sampler import Key
from common.data.seeding import derived_seed
from common.errors import RecipeError, message


@attrs.frozen
class Clip:
    """One sample on disk.

    Args:
        name: File name without ending.
        label: Class index.
        audio: The wav file.
        frames: The jpg files in order, at least one.
    """

    name: str
    label: int
    audio: Path
    frames: tuple[Path, ...]


@attrs.frozen
class Found:
    """The clips of a list that are on disk, and the names of those that are not, by what they lack."""

    clips: tuple[Clip, ...]
    without_audio: tuple[str, ...]
    without_frames: tuple[str, ...]


def find_clips(rows: Sequence[Row], classes: Sequence[str], audio_folder: Path, frames_folder: Path) -> Found:
    """Look up `audio_folder/<name>.wav` and the frames in `frames_folder/<name>/` for every row."""
    listed = [
        Clip(
            row.name, classes.index(row.label), audio_folder / f"{row.name}.wav", frame_files(frames_folder / row.name)
        )
        for row in rows
    ]
    audible = {clip.name for clip in listed if clip.audio.is_file()}
    return Found(
        clips=tuple(clip for clip in listed if clip.name in audible and clip.frames),
        without_audio=tuple(clip.name for clip in listed if clip.name not in audible),
        without_frames=tuple(clip.name for clip in listed if not clip.frames),
    )


def drop_unreadable(clips: Sequence[Clip]) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """Decode every file of every clip once.

    Returns:
        The clips without a bad file, and one line for each of the others.
    """
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(_fault, clips))
    good = tuple(clip for clip, fault in zip(clips, faults, strict=True) if fault is None)
    return good, tuple(fault for fault in faults if fault is not None)


class ClipDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Reads clips by (epoch, index).

    What a training sample looks like depends on (seed, epoch, index) alone: not on the order of reading, the number of
    workers, or anything that draws random numbers elsewhere. Evaluation does not depend on the epoch either.

    Args:
        clips: The samples.
        audio: Reads the wav file of a clip, as float32 of shape (1, F, W).
        frames: Reads the frames of a clip, as float32 of shape (3, T, size, size).
        training: Whether to augment.
        seed: Of the augmentation.
    """

    def __init__(self, clips: Sequence[Clip], audio: Spectrogram, frames: Frames, *, training: bool, seed: int) -> None:
        self.clips = tuple(clips)
        self.audio, self.frames = audio, frames
        self.training, self.seed = training, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, int]:
        """Return (audio, visual, label) of the clip `key[1]` as it looks in epoch `key[0]`."""
        epoch, index = key
        clip = self.clips[index]
        seed = derived_seed(self.seed, epoch, index) if self.training else None
        with _one_thread():
            return self.audio(clip.audio), self.frames(clip.frames, seed=seed), clip.label


@contextmanager
def _one_thread() -> Iterator[None]:
    """Work with one thread, as DataLoader workers do: with another number a Fourier transform may round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fault(clip: Clip) -> str | None:
    try:
        read_waveform(clip.audio)
        for path in clip.frames:
            read_image(path)
    except RecipeError as error:
        return f"{clip.name}: {message(error)}"
    return None
