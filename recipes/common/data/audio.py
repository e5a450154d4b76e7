"""From a wav file to a log-magnitude spectrogram."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs.validators import ge, gt
from torch import Tensor

from common.errors import RecipeError, require


def read_waveform(path: Path, rate: int | None = None) -> Tensor:
    """Read a sound file, average its channels and resample it.

    Args:
        path: A file that libsndfile can read.
        rate: Wanted sampling rate in Hz; None keeps the file's own.

    Returns:
        The waveform, float32 of shape (samples,), nominally in [-1, 1].

    Raises:
        RecipeError: If the file is missing, unreadable or holds no sample.
    """
    soundfile = require("soundfile")
    try:
        samples, source_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    if len(samples) == 0:
        raise _unreadable(path, "it holds no samples")
    waveform = torch.from_numpy(samples).mean(dim=1)
    return waveform if rate in (None, source_rate) else _resampler(source_rate, rate)(waveform)


@attrs.frozen
class Spectrogram:
    """Reads a wav file as a log-magnitude spectrogram.

    The defaults give the (1, 257, 188) tensor of the OGM-GE code for CREMA-D: 22,050 Hz mono, repeated and cut to
    3 s, clipped to [-1, 1], natural log of (magnitude + 1e-7), not normalised. The signal is reflected at both ends,
    as librosa did when the paper was written (librosa >= 0.10 pads with zeros, which changes the outermost columns).

    Args:
        rate: Sampling rate in Hz to which every file is resampled.
        seconds: Length to which every waveform is repeated and cut.
        n_fft: Window length of the Fourier transform in samples; gives n_fft // 2 + 1 rows.
        hop: Step between windows in samples; gives round(rate * seconds) // hop + 1 columns.
    """

    rate: int = attrs.field(default=22_050, validator=gt(0))
    seconds: float = attrs.field(default=3.0, validator=gt(0))
    n_fft: int = attrs.field(default=512, validator=ge(2))
    hop: int = attrs.field(default=353, validator=gt(0))

    def __attrs_post_init__(self) -> None:
        if self.samples <= self.n_fft // 2:
            raise RecipeError(
                f"Expected clips longer than half a window of {self.n_fft} samples. Found {self.samples} samples "
                f"({self.seconds} s at {self.rate} Hz). Fix: raise --audio-seconds or lower --n-fft."
            )

    @property
    def samples(self) -> int:
        """Length of the waveform that is transformed, in samples."""
        return round(self.rate * self.seconds)

    def __call__(self, path: Path) -> Tensor:
        """Return the spectrogram of a file, float32 of shape (1, n_fft // 2 + 1, columns)."""
        return self.transform(read_waveform(path, self.rate))

    def transform(self, waveform: Tensor) -> Tensor:
        """Return the spectrogram of a waveform of shape (samples,) of any length > 0."""
        repeats = math.ceil(self.samples / len(waveform))
        signal = waveform.repeat(repeats)[: self.samples].clamp(-1, 1)
        window = torch.hann_window(self.n_fft)
        spectrum = torch.stft(signal, self.n_fft, self.hop, window=window, pad_mode="reflect", return_complex=True)
        return torch.log(spectrum.abs() + 1e-7).unsqueeze(0)


@cache
def _resampler(source: int, target: int) -> Any:
    """Build the filter once per pair of rates; its settings are those of librosa's former default `kaiser_best`."""
    transforms = require("torchaudio.transforms")
    return transforms.Resample(
        source,
        target,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        beta=14.769656459379492,
    )


def _unreadable(path: Path, reason: str) -> RecipeError:
    return RecipeError(
        f"Expected a readable wav file. Found {path}: {reason}. Fix: restore the file, or leave it out with --skip-bad."
    )
