"""Input pipelines in three steps, the first of which is cached: decoding, random choices, batches.

A `Pipeline` leads from the files of one modality to the tensor of a batch. `decode` runs once, its small tensors are
kept in the cache, and nothing in it is random. `pick` chooses the parts of a sample for one epoch, by a seed. `finish`
makes the tensor of a batch on the CPU; or `pack` makes few tensors of small numbers, which are sent to the device, and
`finish_packed` does the same work there for the whole batch at once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from recipe_common.data.readers.audio import Spectrogram, WindowSpectrogram
from recipe_common.data.readers.frames import Crop, Frames, normalisation, pixels_of, read_image
from recipe_common.data.readers.waveforms import read_samples, unreadable
from recipe_common.data.samples.batches import batch_tensor

INT16_SCALE = 1 / 32_768
Packed = tuple[Any, ...]
"""Tensors, which are sent to the device, and plain numbers about them, which stay on the host."""


class Pipeline(Protocol):
    """Input pipeline of one modality; `media` is a result of its `Source.find`."""

    @property
    def settings(self) -> str:
        """Text with everything on which `decode` depends besides the files."""

    def files(self, media: Any) -> Sequence[Path]:
        """Return the files that `decode` reads."""

    def note(self, media: Any) -> str:
        """Return a text with everything in `media` on which `decode` depends besides the files."""

    def decode(self, media: Any) -> Sequence[Tensor]:
        """Return the tensors that are kept.

        Raises:
            RecipeError: If a file cannot be read.
        """

    def pick(self, kept: Sequence[Tensor], media: Any, seed: int | None) -> Any:
        """Return the parts of one sample for `finish` and `pack`; seed None is for evaluation."""

    def finish(self, picked: Sequence[Any]) -> Tensor:
        """Return the tensor of a batch, on the CPU."""

    def pack(self, picked: Sequence[Any]) -> Packed:
        """Return the data of a batch that are sent to the device."""

    def finish_packed(self, packed: Packed) -> Tensor:
        """Return the tensor of a batch, on the device of `packed`."""


def one_file(media: Any) -> tuple[Path, ...]:
    """Return the only file of media that are a path."""
    return (media,)


def no_note(media: Any) -> str:
    """Return nothing, for decoding that depends on the files alone."""
    return ""


@attrs.frozen
class WaveformPipeline:
    """Keeps waveforms: 16-bit samples if the file has mono ones at the right rate, else float32, resampled.

    Args:
        front_end: Front end that transforms them to spectrograms.
    """

    front_end: Spectrogram | WindowSpectrogram

    @property
    def settings(self) -> str:
        """Sampling rate."""
        return f"waveform, {self.front_end.rate} Hz"

    def files(self, media: Path) -> tuple[Path, ...]:
        """Return the wav file."""
        return (media,)

    def note(self, media: Path) -> str:
        """Return nothing: the waveform depends on its file alone."""
        return ""

    def decode(self, media: Path) -> tuple[Tensor]:
        """Return the waveform."""
        return (read_samples(media, self.front_end.rate),)

    def pick(self, kept: Sequence[Tensor], media: Path, seed: int | None) -> Tensor:
        """Return the part of the waveform that is transformed.

        Raises:
            RecipeError: If it has values that are not finite, as caches of earlier commits may.
        """
        return finite(self.front_end.cut(kept[0], media, seed), media)

    def pack(self, picked: Sequence[Tensor]) -> Packed:
        """Return the waveforms (B, samples), int16 if all of them are."""
        if len({waveform.dtype for waveform in picked}) > 1:
            picked = [as_float(waveform) for waveform in picked]
        return (torch.stack(list(picked), out=batch_tensor(len(picked), *picked[0].shape, dtype=picked[0].dtype)),)

    def finish_packed(self, packed: Packed) -> Tensor:
        """Return the spectrograms, from one Fourier transform of all waveforms."""
        return self.front_end.of_batch(as_float(packed[0])).contiguous()

    def finish(self, picked: Sequence[Tensor]) -> Tensor:
        """Return the spectrograms, computed one by one, as more do not fit into the cache of the processor."""
        first = self.front_end.of_batch(as_float(picked[0])[None])
        finished = batch_tensor(len(picked), *first.shape[1:])
        finished[:1] = first
        for index, waveform in enumerate(picked[1:], 1):
            finished[index : index + 1] = self.front_end.of_batch(as_float(waveform)[None])
        return finished


def finite(tensor: Tensor, path: Path) -> Tensor:
    """Return a tensor of the cache unchanged.

    Raises:
        RecipeError: If it has values that are not finite; the file is named.
    """
    # The sum of finite values is finite but for an overflow, and takes a tenth of the time.
    if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        raise unreadable(path, "values that are not finite, kept in the cache")
    return tensor


def as_float(waveform: Tensor) -> Tensor:
    """Return a waveform as float32 in [-1, 1]."""
    return waveform.float().mul_(INT16_SCALE) if waveform.dtype == torch.int16 else waveform


@attrs.frozen
class TensorPipeline:
    """Keeps the finished tensor of a front end without random choices, so that nothing is left to compute.

    Args:
        read: The front end; its repr shows all of its settings.
        files: From media to the files that are read.
        note: From media to a text with everything else on which the tensor depends.
    """

    read: Callable[..., Tensor]
    files: Callable[[Any], Sequence[Path]] = one_file
    note: Callable[[Any], str] = no_note

    @property
    def settings(self) -> str:
        """Repr of the front end."""
        return f"tensor, {self.read!r}"

    def decode(self, media: Any) -> tuple[Tensor]:
        """Return the tensor."""
        return (self.read(media),)

    def pick(self, kept: Sequence[Tensor], media: Any, seed: int | None) -> Tensor:
        """Return the tensor.

        Raises:
            RecipeError: If it has values that are not finite, as caches of earlier commits may.
        """
        return finite(kept[0], self.files(media)[0])

    def pack(self, picked: Sequence[Tensor]) -> Packed:
        """Return the tensors, stacked."""
        return (self.finish(picked),)

    def finish_packed(self, packed: Packed) -> Tensor:
        """Return the stacked tensors unchanged."""
        return packed[0]

    def finish(self, picked: Sequence[Tensor]) -> Tensor:
        """Return the tensors, stacked."""
        finished = batch_tensor(len(picked), *picked[0].shape)
        return torch.stack(list(picked), out=finished)


def sound_pipeline(front_end: Callable[..., Tensor], short_side: int) -> Pipeline:
    """Return the pipeline of a front end: it keeps waveforms where windows are random, otherwise finished tensors.

    A finished spectrogram leaves nothing to compute. It has (n_fft // 2 + 1) / hop times the room of its waveform in
    float32: 0.73 with the defaults of `Spectrogram`, 2 with a hop of 128.
    """
    if isinstance(front_end, WindowSpectrogram):
        return WaveformPipeline(front_end)
    return TensorPipeline(front_end)


@attrs.frozen
class FramesPipeline:
    """Keeps the frames of a clip as uint8, scaled down until their shorter side has `short_side` pixels.

    Args:
        frames: Choice of the frames and crops of a sample.
        short_side: Length in pixels; smaller pictures stay as they are.
        files: From media to the files that are read, whose sizes and times show changes.
        pictures: From media to paths or open files of pictures: all frames from which `frames` chooses, in order.
        choice: Description of the choice of `pictures`, if they are not all frames of the clip.
    """

    frames: Frames
    short_side: int
    files: Callable[[Any], Sequence[Path]]
    pictures: Callable[[Any], Sequence[Path]]
    choice: str = "all"

    @property
    def settings(self) -> str:
        """Size and choice of the frames."""
        return f"RGB frames, shorter side at most {self.short_side} pixels, {self.choice}"

    def note(self, media: Any) -> str:
        """Return nothing: the frames depend on their files alone."""
        return ""

    def decode(self, media: Any) -> list[Tensor]:
        """Return the frames."""
        return [pixels_of(shrunk(read_image(path), self.short_side)) for path in self.pictures(media)]

    def pick(self, kept: Sequence[Tensor], media: Any, seed: int | None) -> list[Crop]:
        """Choose frames and their crops, as `Frames` does from the files."""
        return self.frames.pick(len(kept), kept.__getitem__, seed)

    def finish(self, picked: Sequence[list[Crop]]) -> Tensor:
        """Return the frames, (B, 3, count, size, size)."""
        return self.frames.finish(picked)

    def pack(self, picked: Sequence[list[Crop]]) -> Packed:
        """Return the crops of all clips, padded to the size of the largest, with their sizes and flips."""
        return pack_crops([crop for crops in picked for crop in crops])

    def finish_packed(self, packed: Packed) -> Tensor:
        """Return the frames, (B, 3, count, size, size); not rounded to whole levels, as they are on the CPU."""
        pictures, sizes = packed
        resized = resize_crops(pictures, sizes, self.frames.size)
        scale, shift = normalisation(pictures.device)
        clips = (resized * scale + shift).view(-1, self.frames.count, *resized.shape[1:])
        return clips.transpose(1, 2).contiguous()


def shrunk(picture: Image.Image, short_side: int) -> Image.Image:
    """Scale a picture down, keeping its proportions, until its shorter side has `short_side` pixels."""
    factor = short_side / min(picture.size)
    if factor >= 1:
        return picture
    width, height = (max(short_side, round(factor * side)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def pack_crops(crops: Sequence[Crop]) -> Packed:
    """Return crops as one padded uint8 tensor (N, height, width, 3), with the height, width and flip of each."""
    sizes = tuple((*crop.pixels.shape[:2], crop.is_flipped) for crop in crops)
    height, width = (max(size[side] for size in sizes) for side in (0, 1))
    pictures = batch_tensor(len(crops), height, width, 3, dtype=torch.uint8)
    for picture, crop in zip(pictures, crops, strict=True):
        picture[: crop.pixels.shape[0], : crop.pixels.shape[1]] = crop.pixels
    return pictures, sizes


def resize_crops(pictures: Tensor, sizes: Sequence[tuple[int, int, bool]], size: int) -> Tensor:
    """Resize and flip the crops from `pack_crops`, by torch's antialiased bilinear filter.

    Returns:
        Levels of 0 to 255, float32 of shape (N, 3, size, size).
    """
    levels = torch.empty(len(sizes), 3, size, size, device=pictures.device)
    for level, picture, (height, width, is_flipped) in zip(levels, pictures, sizes, strict=True):
        part = picture[:height, :width].permute(2, 0, 1)[None].float()
        resized = interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
        level.copy_(resized.flip(-1) if is_flipped else resized)
    return levels
