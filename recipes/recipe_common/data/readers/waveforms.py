"""Reads sound files as waveforms: decoding, resampling, repetition."""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipe_common.data.cache.headers import Facts, Header
from recipe_common.data.readers.non_files import check_file, file_error
from recipe_common.errors import RecipeError, require

RATES = (500, 1_000_000)
"""Lowest and highest sampling rates of sound in Hz; others stand in damaged headers."""
MOST_WEIGHTS = 50_000_000
"""Largest filter for resampling, which has a weight for each pair of phases of the two rates: 400 MB."""
OTHERWISE = ", or leave it out with `--skip-bad`"


def read_waveform(path: Path, rate: int | None = None) -> Tensor:
    """Read a sound file, average its channels and resample it.

    Args:
        path: A file that libsndfile can read.
        rate: Wanted sampling rate in Hz; None keeps the file's own.

    Returns:
        The waveform, float32 of shape (samples,), nominally in [-1, 1].

    Raises:
        RecipeError: If the file is missing, unreadable, or holds no sample or one that is not finite.
    """
    waveform, source_rate = _decoded(path, rate)
    return waveform if rate in (None, source_rate) else _resampler(source_rate, rate)(waveform)


def check_waveform(path: Path, rate: int) -> Tensor:
    """Decode a sound file for `read_waveform` without the resampling, which takes most of the time.

    Returns:
        The waveform at the sampling rate of the file, float32 of shape (samples,).

    Raises:
        RecipeError: As `read_waveform`.
    """
    return _decoded(path, rate)[0]


def _decoded(path: Path, rate: int | None) -> tuple[Tensor, int]:
    soundfile = require("soundfile")
    # libsndfile reads half a download without an error.
    check_file(path, f"{path} should be a readable wav file", otherwise=OTHERWISE)
    try:
        samples, source_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise unreadable(path, str(error)) from error
    if len(samples) == 0:
        raise unreadable(path, "no samples")
    _check_rate(path, source_rate, rate or source_rate)
    waveform = torch.from_numpy(samples).mean(dim=1)
    if not torch.isfinite(waveform).all():
        raise unreadable(path, _not_finite(torch.from_numpy(samples)))
    return waveform, source_rate


def read_sound_header(path: Path) -> Facts:
    """Return the samples per channel of a sound file, and its sampling rate in Hz.

    Raises:
        RecipeError: If the file is missing, cut off or no sound file, or holds no sample.
    """
    soundfile = require("soundfile")
    check_file(path, f"{path} should be a readable wav file", otherwise=OTHERWISE)
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise unreadable(path, str(error)) from error
    if info.frames <= 0:
        raise unreadable(path, "no samples")
    return [info.frames, info.samplerate]


def check_sound_header(rate: int, path: Path, facts: Sequence[Facts]) -> int:
    """Check that a sound file can be resampled.

    Args:
        rate: Sampling rate in Hz to which it is resampled.
        path: The file.
        facts: Its facts from `read_sound_header`.

    Returns:
        Its samples at that rate.

    Raises:
        RecipeError: If it cannot.
    """
    ((frames, source),) = facts
    _check_rate(path, source, rate)
    return math.ceil(frames * rate / source)


def sound_header(rate: int) -> Header:
    """Return the reader of the headers of sound files that are resampled to a rate in Hz."""
    return Header("sound", read_sound_header, partial(check_sound_header, rate))


def _not_finite(samples: Tensor) -> str:
    """Return the number of values in (samples, channels) that are not finite, as text."""
    count = int((~torch.isfinite(samples)).sum())
    return f"{count:,} of {samples.numel():,} values not finite" if count else "values too large for float32"


def read_samples(path: Path, rate: int) -> Tensor:
    """Read a sound file as `read_waveform` does, in as few bytes as lose nothing.

    Returns:
        The waveform of shape (samples,): int16, to be divided by 32,768, if the file holds mono 16-bit samples at
        `rate`; float32 otherwise.
    """
    soundfile = require("soundfile")
    check_file(path, f"{path} should be a readable wav file", otherwise=OTHERWISE)
    with suppress(soundfile.SoundFileError, OSError):  # `read_waveform` raises the error with its message
        kind = soundfile.info(path)
        if (kind.subtype, kind.channels, kind.samplerate) == ("PCM_16", 1, rate) and kind.frames > 0:
            return torch.from_numpy(soundfile.read(path, dtype="int16")[0])
    return read_waveform(path, rate)


def repeated(waveform: Tensor, size: int) -> Tensor:
    """Return a waveform (n,) of any length > 0 repeated, and cut, to (size,)."""
    times, rest = divmod(size, len(waveform))
    return waveform[:size] if times == 0 else torch.cat([waveform] * times + [waveform[:rest]])


def _check_rate(path: Path, source: int, target: int) -> None:
    """Refuse rates of damaged headers, for which resampling takes all memory."""
    low, high = RATES
    divisor = math.gcd(source, target)
    if not low <= source <= high or (source // divisor) * (target // divisor) > MOST_WEIGHTS:
        raise unreadable(path, f"a sampling rate of {source:,} Hz, which cannot be converted to {target:,} Hz")


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


def unreadable(path: Path, found: str, kind: str = "wav file") -> RecipeError:
    """Return the error for a file that cannot be read."""
    return file_error(
        path,
        f"{path} should be a readable {kind}",
        found=found,
        fix="restore the file",
        otherwise=OTHERWISE,
    )
