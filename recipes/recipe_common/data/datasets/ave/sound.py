"""Spectrograms of the sound of an event, or of the first seconds of its clip."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from recipe_common.arguments import positive_float, positive_int
from recipe_common.data.cache.headers import Facts, Header
from recipe_common.data.cache.pipelines import TensorPipeline
from recipe_common.data.datasets.ave.clips import seconds_of
from recipe_common.data.readers.audio import Spectrogram, above
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.readers.waveforms import check_sound_header, read_sound_header, read_waveform
from recipe_common.data.samples.audiovisual import audio_source
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sources import Source
from recipe_common.errors import RecipeError, require
from recipe_common.settings.declaration import flag


@attrs.frozen
class EventFile:
    """A sound file, and the first second of the event in it and the second after its last one."""

    path: Path
    start: int
    end: int


@attrs.frozen
class EventSpectrogram:
    """Turns the sound of an event into a log-power spectrogram.

    The defaults give the (1, 257, 1004) tensor of the code of Fan et al. (CVPR 2023): 16,000 Hz mono, the seconds of
    the event repeated and cut to 10 s, clipped to [-1, 1], SciPy's spectrogram (power density, Tukey window, each
    window minus its mean), natural log of (density + 1e-7), minus its mean and divided by its standard deviation.

    Args:
        rate: Sampling rate in Hz to which every file is resampled.
        seconds: Length in seconds to which the event is repeated and cut.
        n_fft: Window length in samples; gives n_fft // 2 + 1 rows.
        hop: Step between windows in samples; the windows of the code of Fan et al. (CVPR 2023) overlap by 353.

    Raises:
        RecipeError: If the numbers fit no spectrogram.
    """

    what: ClassVar = "wav file"
    rate: int = attrs.field(default=16_000, validator=above(0, "--audio-rate"))
    seconds: float = attrs.field(default=10.0, validator=above(0, "--audio-seconds"))
    n_fft: int = attrs.field(default=512, validator=above(1, "--n-fft"))
    hop: int = attrs.field(default=159, validator=above(0, "--hop"))

    def __attrs_post_init__(self) -> None:
        if self.hop > self.n_fft or self.n_fft > self.rate * self.seconds:
            raise RecipeError(
                "`--hop` should be at most `--n-fft`, and that at most the samples of a clip, "
                f"{self.rate} Hz times {self.seconds} s",
                found=f"--hop {self.hop} and --n-fft {self.n_fft}",
                fix="change these, or raise --audio-seconds",
            )

    def __call__(self, event: EventFile, *, seed: int | None = None) -> Tensor:
        """Return the spectrogram, float32 of shape (1, n_fft // 2 + 1, columns); nothing is random.

        Raises:
            RecipeError: If the file is unreadable or ends before the event begins.
        """
        waveform = read_waveform(event.path, self.rate)
        self._check_length(event, len(waveform))
        return self.transform(waveform[event.start * self.rate : event.end * self.rate])

    @property
    def header(self) -> Header:
        """Reader of the headers of its files; they also show whether the event begins before the end."""
        return Header("sound", read_sound_header, self._check_header, _event_files)

    def _check_header(self, event: EventFile, facts: Sequence[Facts]) -> None:
        self._check_length(event, check_sound_header(self.rate, event.path, facts))

    def _check_length(self, event: EventFile, samples: int) -> None:
        if samples <= event.start * self.rate:
            raise RecipeError(
                f"{event.path} should have sound from second {event.start} on",
                found=f"{samples / self.rate:.1f} s",
                fix="restore the file, or leave it out with --skip-bad",
            )

    def transform(self, waveform: Tensor) -> Tensor:
        """Return the spectrogram of a waveform of shape (samples,) of any length > 0."""
        size = round(self.rate * self.seconds)
        signal = waveform.repeat(math.ceil(size / len(waveform)))[:size].clamp(-1, 1)
        density = require("scipy.signal").spectrogram(
            signal.numpy(), self.rate, nperseg=self.n_fft, noverlap=self.n_fft - self.hop
        )[2]
        spectrogram = torch.from_numpy(density).float().add(1e-7).log()
        normal = (spectrogram - spectrogram.mean()) / (spectrogram.std(correction=0) + 1e-9)
        return normal.unsqueeze(0)


@attrs.frozen
class StartSpectrogram:
    """Turns the first seconds of a clip, whenever its event begins, into a spectrogram.

    Source: code of Wei et al. (ICCV 2025).

    Args:
        spectrogram: Front end for the first seconds; in that code 3 s at 22,050 Hz, windows of 512 samples, steps of
            256.
        refill: Rows of a square that the numbers of the spectrogram fill row after row, from the start again where they
            do not suffice. That is the effect of `np.resize` in that code, with 224, where an image would be rescaled.
            0 keeps the spectrogram as it is.
    """

    what: ClassVar = "wav file"
    spectrogram: Spectrogram = attrs.field(factory=partial(Spectrogram, hop=256))
    refill: int = attrs.field(default=0, validator=ge(0))

    def __call__(self, event: EventFile, *, seed: int | None = None) -> Tensor:
        """Return the spectrogram, float32 of shape (1, rows, columns); nothing is random."""
        made = self.spectrogram(event.path)
        if self.refill == 0:
            return made
        numbers = made.flatten().repeat(math.ceil(self.refill**2 / made.numel()))
        return numbers[: self.refill**2].reshape(1, self.refill, self.refill)

    @property
    def header(self) -> Header:
        """Reader of the headers of its files."""
        return Header("sound", read_sound_header, self._check_header, _event_files)

    def _check_header(self, event: EventFile, facts: Sequence[Facts]) -> None:
        check_sound_header(self.spectrogram.rate, event.path, facts)


@attrs.frozen(kw_only=True)
class EventAudioSettings:
    """Settings of the spectrogram; None stands for the value of the front end."""

    audio_rate: int | None = flag(
        None, "sampling rate; default: that of the front end", number=positive_int, metavar="HZ"
    )
    audio_seconds: float | None = flag(
        None, "length of the sound; default: that of the front end", number=positive_float, metavar="S"
    )
    n_fft: int | None = flag(None, "window of the spectrogram; default: 512", number=positive_int, metavar="SAMPLES")
    hop: int | None = flag(
        None, "step of the spectrogram; default: 159 (event) or 256", number=positive_int, metavar="SAMPLES"
    )

    def given(self) -> dict[str, Any]:
        """Return the values that are set, under the names of the parameters of a spectrogram."""
        values = {"rate": self.audio_rate, "seconds": self.audio_seconds, "n_fft": self.n_fft, "hop": self.hop}
        return {name: value for name, value in values.items() if value is not None}


EventFrontEnd = EventSpectrogram | StartSpectrogram | StoredSpectrogram


def event_spectrogram(settings: EventAudioSettings) -> EventSpectrogram:
    """Return the front end for the sound of events that the settings describe."""
    return EventSpectrogram(**settings.given())


def start_spectrogram(settings: EventAudioSettings, *, refill: int = 0) -> StartSpectrogram:
    """Return the front end for the first seconds of clips that the settings describe.

    Args:
        settings: Settings of the spectrogram, whose default step is 256 samples.
        refill: Rows of a square that is filled with its numbers, see `StartSpectrogram`; 0 keeps it.
    """
    return StartSpectrogram(Spectrogram(**({"hop": 256} | settings.given())), refill)


def event_audio_source(folder: Path, read: EventFrontEnd) -> Source:
    """Return the source of `folder/<video id>.wav` with its event, or of stored spectrograms of events."""
    if isinstance(read, StoredSpectrogram):
        return audio_source([folder], read)
    pipeline = partial(_sound_pipeline, read)
    return Source("audio", read.what, str(folder), partial(_find_wav, folder), read, read, pipeline, read.header)


def _sound_pipeline(read: EventSpectrogram | StartSpectrogram, short_side: int) -> TensorPipeline:
    return TensorPipeline(read, _event_files, _event_seconds)


def _event_files(event: EventFile) -> tuple[Path, ...]:
    return (event.path,)


def _event_seconds(event: EventFile) -> str:
    return f"seconds {event.start} to {event.end}"


def _find_wav(folder: Path, row: Row) -> EventFile | None:
    path = folder / f"{row.name}.wav"
    return EventFile(path, *seconds_of(row)) if path.is_file() else None
