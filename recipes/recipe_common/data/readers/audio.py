"""Audio front ends: log-magnitude spectrograms and log-mel energies of wav files, and stored spectrograms.

Every front end is called with a path, and with a seed in training, and returns float32 of shape (1, ., .).
"""

import math
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import attrs
import torch
from attrs.validators import gt, in_
from torch import Tensor

from recipe_common.arguments import positive_float, positive_int
from recipe_common.data.cache.headers import Facts, Header
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.readers.waveforms import (
    check_sound_header,
    check_waveform,
    read_sound_header,
    read_waveform,
    repeated,
    sound_header,
    unreadable,
)
from recipe_common.data.samples.seeding import derived_seed
from recipe_common.errors import RecipeError, require
from recipe_common.settings.declaration import flag

FRONT_ENDS = ("stft22k", "stft16k", "fbank", "stored")
CROPS = ("centre", "random")


class FrontEnd(Protocol):
    """Reader of one kind of sound file as one kind of tensor."""

    endings: ClassVar[tuple[str, ...]]
    what: ClassVar[str]

    def __call__(self, path: Path, *, seed: int | None = None) -> Tensor:
        """Return float32 of shape (1, ., .); in training its randomness depends on the seed, None is for evaluation."""

    def check(self, path: Path) -> object:
        """Decode a file.

        Raises:
            RecipeError: If that fails.
        """

    @property
    def header(self) -> Header:
        """Reader of the headers of its files."""


@attrs.frozen(kw_only=True)
class AudioSettings:
    """Choice and settings of a front end; None stands for its default."""

    audio_frontend: str = flag(
        "stft22k",
        "stft22k, stft16k: spectrograms of wav files; fbank: their log-mel energies; stored: spectrograms in npy, pkl "
        "or pt files",
        choices=FRONT_ENDS,
    )
    audio_rate: int | None = flag(
        None, "sampling rate; default: 22,050 (stft22k) or 16,000", number=positive_int, metavar="HZ"
    )
    audio_seconds: float | None = flag(
        None,
        "stft22k: length of the sound, default 3; stft16k: length of a window in twice as much sound, default 5",
        number=positive_float,
        metavar="S",
    )
    n_fft: int | None = flag(
        None, "window of the spectrogram; default: 512 (stft22k) or 256", number=positive_int, metavar="SAMPLES"
    )
    hop: int | None = flag(
        None, "step of the spectrogram; default: 353 (stft22k) or 128", number=positive_int, metavar="SAMPLES"
    )
    mel_bins: int | None = flag(None, "fbank: frequency bands, default 128", number=positive_int, metavar="N")
    fbank_frames: int | None = flag(
        None, "fbank: length in steps of 10 ms, default 1024", number=positive_int, metavar="N"
    )
    crop: str = flag("centre", "stft16k: window in evaluation; in training it is always random", choices=CROPS)


def front_end(settings: AudioSettings, seed: int) -> FrontEnd:
    """Return the front end of some settings.

    Args:
        settings: The settings.
        seed: Seed of windows that are random in evaluation.
    """
    if settings.audio_frontend == "stored":
        return StoredSpectrogram()
    if settings.audio_frontend == "fbank":
        return Fbank(**_given(rate=settings.audio_rate, bins=settings.mel_bins, frames=settings.fbank_frames))
    stft = _given(rate=settings.audio_rate, seconds=settings.audio_seconds, n_fft=settings.n_fft, hop=settings.hop)
    if settings.audio_frontend == "stft22k":
        return Spectrogram(**stft)
    return WindowSpectrogram(**stft, crop=settings.crop, seed=seed)


def above(bound: float, flag: str) -> Callable[[object, "attrs.Attribute[Any]", float], None]:
    """Return a validator of finite numbers above `bound`; its RecipeError names the flag of the number."""

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
        if not bound < value < math.inf:
            raise RecipeError(
                f"`{flag}` should be a finite number above {bound}",
                found=str(value),
                fix=f"give `{flag} {attribute.default}`",
            )

    return check


@attrs.frozen
class Spectrogram:
    """Reads a wav file as a log-magnitude spectrogram.

    The defaults give the (1, 257, 188) tensor in the code of Peng et al. (CVPR 2022) for CREMA-D: 22,050 Hz mono,
    repeated and cut to 3 s, clipped to [-1, 1], natural log of (magnitude + 1e-7), not normalised. The signal is
    reflected at both ends, as by librosa when the paper was written (librosa >= 0.10 pads with zeros, which changes the
    outermost columns).

    Args:
        rate: Sampling rate in Hz to which every file is resampled.
        seconds: Length to which every waveform is repeated and cut.
        n_fft: Window length of the Fourier transform in samples; gives n_fft // 2 + 1 rows.
        hop: Step between windows in samples; gives round(rate * seconds) // hop + 1 columns.

    Raises:
        RecipeError: If the numbers fit no spectrogram.
    """

    endings: ClassVar[tuple[str, ...]] = (".wav",)
    what: ClassVar[str] = "wav file"
    rate: int = attrs.field(default=22_050, validator=above(0, "--audio-rate"))
    seconds: float = attrs.field(default=3.0, validator=above(0, "--audio-seconds"))
    n_fft: int = attrs.field(default=512, validator=above(1, "--n-fft"))
    hop: int = attrs.field(default=353, validator=above(0, "--hop"))

    def __attrs_post_init__(self) -> None:
        if self.samples <= self.n_fft // 2:
            raise RecipeError(
                f"Clips should be longer than half a window of {self.n_fft} samples",
                found=f"{self.samples} samples ({self.seconds} s at {self.rate} Hz)",
                fix="raise `--audio-seconds` or lower `--n-fft`",
            )

    @property
    def samples(self) -> int:
        """Length of the waveform that is transformed, in samples."""
        return round(self.rate * self.seconds)

    def __call__(self, path: Path, *, seed: int | None = None) -> Tensor:
        """Return the spectrogram of a file, float32 of shape (1, n_fft // 2 + 1, columns); nothing is random."""
        return self.transform(read_waveform(path, self.rate))

    def check(self, path: Path) -> Tensor:
        """Decode a file."""
        return check_waveform(path, self.rate)

    @property
    def header(self) -> Header:
        """Reader of the headers of its files."""
        return sound_header(self.rate)

    def transform(self, waveform: Tensor) -> Tensor:
        """Return the spectrogram of a waveform of shape (samples,) of any length > 0."""
        return self.of_batch(repeated(waveform, self.samples)[None])[0].contiguous()

    def cut(self, waveform: Tensor, path: Path, seed: int | None) -> Tensor:
        """Return the part of a waveform (n,), of any number format, that is transformed: (samples,)."""
        return repeated(waveform, self.samples)

    def of_batch(self, waveforms: Tensor) -> Tensor:
        """Return the spectrograms of float32 waveforms (B, samples), on their device: (B, 1, n_fft // 2 + 1, columns).

        Each depends on its own waveform alone. In memory, columns come before rows.
        """
        window = _hann(self.n_fft, waveforms.device)
        signals = waveforms.clamp(-1, 1)
        spectra = torch.stft(signals, self.n_fft, self.hop, window=window, pad_mode="reflect", return_complex=True)
        # `abs` takes five times longer, for the sake of numbers that overflow when squared; here are none.
        magnitude = (spectra * spectra.conj()).real.sqrt()
        return magnitude.add_(1e-7).log_().unsqueeze(1)


@attrs.frozen
class WindowSpectrogram:
    """Reads a window of a wav file as a log-magnitude spectrogram.

    The defaults give the (1, 129, 626) tensor in the code of Peng et al. (CVPR 2022) for VGGSound and of Wei et al.
    (ICCV 2025) for Kinetics-Sounds: 16,000 Hz mono, repeated to at least 10 s, 5 s out of the first 10 s, then as in
    `Spectrogram`. In training the window is random. In both codes it is random in testing too, drawn anew every time;
    here `crop="random"` draws one per file name, so that an evaluation can be repeated.

    Args:
        rate: Sampling rate in Hz to which every file is resampled.
        seconds: Length of the window; the waveform is repeated and cut to twice that.
        n_fft: Window length of the Fourier transform in samples; gives n_fft // 2 + 1 rows.
        hop: Step in samples; gives round(rate * seconds) // hop + 1 columns.
        crop: Window in evaluation: "centre" or "random".
        seed: Seed of the random windows in evaluation.

    Raises:
        RecipeError: If the numbers fit no spectrogram.
    """

    endings: ClassVar[tuple[str, ...]] = (".wav",)
    what: ClassVar[str] = "wav file"
    rate: int = attrs.field(default=16_000, validator=above(0, "--audio-rate"))
    seconds: float = attrs.field(default=5.0, validator=above(0, "--audio-seconds"))
    n_fft: int = attrs.field(default=256, validator=above(1, "--n-fft"))
    hop: int = attrs.field(default=128, validator=above(0, "--hop"))
    crop: str = attrs.field(default="centre", validator=in_(CROPS))
    seed: int = 0
    _spectrogram: Spectrogram = attrs.field(init=False)

    @_spectrogram.default
    def _spectrogram_of_the_window(self) -> Spectrogram:
        return Spectrogram(self.rate, self.seconds, self.n_fft, self.hop)

    def __call__(self, path: Path, *, seed: int | None = None) -> Tensor:
        """Return the spectrogram of a window, float32 of shape (1, n_fft // 2 + 1, columns)."""
        return self.of_batch(self.cut(read_waveform(path, self.rate), path, seed)[None])[0].contiguous()

    def of_batch(self, waveforms: Tensor) -> Tensor:
        """Return the spectrograms of windows (B, samples), as in `Spectrogram.of_batch`."""
        return self._spectrogram.of_batch(waveforms)

    def cut(self, waveform: Tensor, path: Path, seed: int | None) -> Tensor:
        """Return the window of a waveform (n,) of any number format: (samples,)."""
        if seed is None and self.crop == "random":
            seed = derived_seed(self.seed, zlib.crc32(path.name.encode()))
        size = self._spectrogram.samples
        tiled = repeated(waveform, 2 * size)
        start = size // 2
        if seed is not None:
            generator = torch.Generator().manual_seed(derived_seed(seed, 1))  # other numbers than those of the frames
            start = int(torch.randint(size + 1, (), generator=generator))
        return tiled[start : start + size]

    def check(self, path: Path) -> Tensor:
        """Decode a file."""
        return check_waveform(path, self.rate)

    @property
    def header(self) -> Header:
        """Reader of the headers of its files."""
        return sound_header(self.rate)


@attrs.frozen
class Fbank:
    """Reads a wav file as log-mel energies of Kaldi.

    The defaults give the (1, 1024, 128) tensor in the code of Peng et al. (CVPR 2022) and of BalanceBenchmark for
    Kinetics-Sounds: 16,000 Hz, minus its mean, windows of 25 ms (Hanning) every 10 ms, 128 bands, no dither; zeros are
    appended or the end is cut, then mean and standard deviation of AudioSet are applied as in the AST paper (Gong et
    al., 2021), (x - mean) / (2 std). Their code takes the first channel of a stereo file and the file's own rate.

    Args:
        rate: Sampling rate in Hz to which every file is resampled.
        bins: Frequency bands; columns of the result.
        frames: Rows of the result.
        mean: Mean of the log energies, which is subtracted.
        std: Standard deviation of the log energies; they are divided by twice that.

    Raises:
        RecipeError: If the numbers fit no spectrogram.
    """

    endings: ClassVar[tuple[str, ...]] = (".wav",)
    what: ClassVar[str] = "wav file"
    rate: int = attrs.field(default=16_000, validator=above(0, "--audio-rate"))
    bins: int = attrs.field(default=128, validator=above(3, "--mel-bins"))
    frames: int = attrs.field(default=1024, validator=above(0, "--fbank-frames"))
    mean: float = -4.503877
    std: float = attrs.field(default=5.141276, validator=gt(0))

    def __call__(self, path: Path, *, seed: int | None = None) -> Tensor:
        """Return the energies of a file, float32 of shape (1, frames, bins); nothing is random.

        Raises:
            RecipeError: If the file is unreadable or shorter than one window.
        """
        waveform = read_waveform(path, self.rate)
        self._check_length(path, len(waveform))
        return self.transform(waveform)

    def transform(self, waveform: Tensor) -> Tensor:
        """Return the energies of a waveform of shape (samples,), of at least 25 ms."""
        energies = require("torchaudio.compliance.kaldi").fbank(
            (waveform - waveform.mean()).unsqueeze(0),
            htk_compat=True,
            sample_frequency=self.rate,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=self.bins,
            dither=0.0,
            frame_length=25.0,
            frame_shift=10.0,
        )
        padded = torch.zeros(self.frames, self.bins)
        kept = energies[: self.frames]
        padded[: len(kept)] = kept
        return ((padded - self.mean) / (2 * self.std)).unsqueeze(0)

    def check(self, path: Path) -> Tensor:
        """Decode a file."""
        return self(path)

    @property
    def header(self) -> Header:
        """Reader of the headers of its files; they also show the length."""
        return Header("sound", read_sound_header, self._check_header)

    def _check_header(self, path: Path, facts: Sequence[Facts]) -> None:
        self._check_length(path, check_sound_header(self.rate, path, facts))

    def _check_length(self, path: Path, samples: int) -> None:
        if samples < int(self.rate * 0.025):
            raise unreadable(path, f"{samples} samples, less than 25 ms")


@cache
def _hann(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, device=device)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
