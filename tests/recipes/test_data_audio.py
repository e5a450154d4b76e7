"""The spectrogram, against a plain NumPy Fourier transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.data.audio import Spectrogram, read_waveform
from common.errors import RecipeError

from .cremad_tree import write_wav


def reference(samples: NDArray[np.float64], length: int, n_fft: int, hop: int) -> NDArray[np.float64]:
    """Log magnitude, from the definition: reflect, cut into windows, weigh by Hann, multiply by the DFT matrix."""
    signal = np.clip(np.tile(samples, 3)[:length], -1, 1)
    padded = np.pad(signal, n_fft // 2, mode="reflect")
    position = np.arange(n_fft)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * position / n_fft)
    starts = range(0, len(padded) - n_fft + 1, hop)
    windows = np.stack([padded[start : start + n_fft] * hann for start in starts], axis=1)
    rows = np.arange(n_fft // 2 + 1)
    transform = np.exp(-2j * np.pi * np.outer(rows, position) / n_fft)
    return np.log(np.abs(transform @ windows) + 1e-7)


def test_spectrogram_of_the_paper_equals_a_plain_dft(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, 30_000).astype(np.float32).astype(np.float64)
    spectrogram = Spectrogram().transform(torch.from_numpy(samples).float())
    expected = reference(samples, length=66_150, n_fft=512, hop=353)
    assert spectrogram.shape == (1, 257, 188)
    assert spectrogram.dtype == torch.float32
    np.testing.assert_allclose(spectrogram[0].numpy(), expected, atol=2e-3)


def test_values_beyond_one_are_clipped() -> None:
    loud, clipped = torch.tensor([3.0, -2.0, 0.5, 0.1]), torch.tensor([1.0, -1.0, 0.5, 0.1])
    front_end = Spectrogram(rate=100, seconds=1.0, n_fft=16, hop=5)
    assert torch.equal(front_end.transform(loud), front_end.transform(clipped))


def test_a_clip_shorter_than_a_third_still_fills_the_length() -> None:
    front_end = Spectrogram(rate=1000, seconds=1.0, n_fft=64, hop=50)
    assert front_end.transform(torch.rand(10)).shape == (1, 33, 21)


def test_silence_gives_the_logarithm_of_the_floor() -> None:
    silent = Spectrogram(rate=1000, seconds=1.0, n_fft=64, hop=50).transform(torch.zeros(1000))
    torch.testing.assert_close(silent, torch.full((1, 33, 21), float(np.log(1e-7))))


def test_stereo_is_averaged(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    write_wav(path, np.stack([np.full(50, 0.5), np.full(50, -0.25)], axis=1))
    torch.testing.assert_close(read_waveform(path, 16_000), torch.full((50,), 0.125))


@pytest.mark.parametrize(("source", "target"), [(16_000, 22_050), (44_100, 22_050), (16_000, 8_000)])
def test_resampling_keeps_a_tone(tmp_path: Path, source: int, target: int) -> None:
    def tone(rate: int) -> NDArray[np.float64]:
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)

    path = tmp_path / "tone.wav"
    write_wav(path, tone(source), source)
    waveform = read_waveform(path, target)
    assert len(waveform) == target // 2
    away_from_the_ends = slice(500, -500)
    np.testing.assert_allclose(waveform.numpy()[away_from_the_ends], tone(target)[away_from_the_ends], atol=1e-3)


def test_reading_and_transforming_are_one_call(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    write_wav(path, np.random.default_rng(0).uniform(-0.5, 0.5, 20_000))
    front_end = Spectrogram()
    assert torch.equal(front_end(path), front_end.transform(read_waveform(path, 22_050)))


@pytest.mark.parametrize("content", [b"", b"no sound", b"RIFF\x00\x00\x00\x00WAVE"])
def test_an_unreadable_file_is_named_with_the_flag(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"bad\.wav.*--skip-bad"):
        Spectrogram()(path)


def test_a_file_without_samples_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    write_wav(path, np.zeros(0))
    with pytest.raises(RecipeError, match=r"empty\.wav: it holds no samples.*--skip-bad"):
        read_waveform(path)


def test_a_window_longer_than_the_clip_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"Found 100 samples.*--audio-seconds"):
        Spectrogram(rate=100, seconds=1.0, n_fft=512)
