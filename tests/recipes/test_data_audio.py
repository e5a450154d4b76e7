"""The front ends, against plain NumPy Fourier transforms and filter banks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from recipe_common.data.readers.audio import (
    AudioSettings,
    Fbank,
    Spectrogram,
    WindowSpectrogram,
    front_end,
)
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.readers.waveforms import read_samples, read_waveform
from recipe_common.errors import RecipeError
from recipe_common.settings.command_line import parse

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
    with pytest.raises(RecipeError, match=r"empty\.wav should be .* Found no samples.*--skip-bad"):
        read_waveform(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_with_a_value_that_is_not_finite_is_unreadable(
    tmp_path: Path, value: float, kind: str, channels: int
) -> None:
    path = tmp_path / "bad.wav"
    samples = np.zeros((4_000, channels))
    samples[3_999, 0] = value
    soundfile.write(path, samples, 16_000, kind)
    expected = rf"bad\.wav should be .* Found 1 of {4_000 * channels:,} values not finite.*--skip-bad"
    for read in (Spectrogram(), Spectrogram().check, WindowSpectrogram(), WindowSpectrogram().check, Fbank()):
        with pytest.raises(RecipeError, match=expected):
            read(path)
    with pytest.raises(RecipeError, match=expected):
        read_samples(path, 16_000)


def test_a_value_too_large_for_float32_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    soundfile.write(path, np.full((100, 2), 3e38), 16_000, "FLOAT")
    with pytest.raises(RecipeError, match=r"bad\.wav.*values too large"):
        read_waveform(path)


def test_a_window_longer_than_the_clip_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"Found 100 samples.*--audio-seconds"):
        Spectrogram(rate=100, seconds=1.0, n_fft=512)


def mel(frequency: float) -> float:
    return 1127 * float(np.log(1 + frequency / 700))


def filter_banks(samples: NDArray[np.float64], rate: int, bins: int, size: int) -> NDArray[np.float64]:
    """Log-mel energies from Kaldi's definitions, window by window and band by band."""
    samples = samples - samples.mean()
    length, step, padded = rate * 25 // 1000, rate // 100, size
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
    edges = np.linspace(mel(20), mel(rate / 2), bins + 2)
    positions = [mel(k * rate / padded) for k in range(padded // 2)]
    rows = []
    for start in range(0, len(samples) - length + 1, step):
        window = samples[start : start + length] - samples[start : start + length].mean()
        emphasised = window - 0.97 * np.concatenate([window[:1], window[:-1]])
        power = np.abs(np.fft.rfft(emphasised * hann, padded)) ** 2
        row = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            weights = [max(0.0, min((at - low) / (centre - low), (high - at) / (high - centre))) for at in positions]
            row.append(np.log(max(np.dot(weights, power[:-1]), np.finfo(np.float32).eps)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.slow
def test_filter_banks_equal_the_definition() -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000).astype(np.float32).astype(np.float64) + 0.1
    found = Fbank().transform(torch.from_numpy(samples).float())
    expected = filter_banks(samples, 16_000, 128, 512)
    assert found.shape == (1, 1024, 128)
    assert found.dtype == torch.float32
    assert expected.shape == (48, 128)
    np.testing.assert_allclose(found[0, :48].numpy(), (expected + 4.503877) / (2 * 5.141276), atol=2e-3)
    # Zeros are appended before the statistics of the data set are applied.
    np.testing.assert_allclose(found[0, 48:].numpy(), 4.503877 / (2 * 5.141276), rtol=1e-6)


def test_filter_banks_of_another_size() -> None:
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, 4_000)
    found = Fbank(rate=8_000, bins=23, frames=10).transform(torch.from_numpy(samples).float())
    expected = filter_banks(samples, 8_000, 23, 256)[:10]
    np.testing.assert_allclose(found[0].numpy(), (expected + 4.503877) / (2 * 5.141276), atol=2e-3)


def test_a_sound_shorter_than_one_window_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "short.wav", np.full(399, 0.1))
    with pytest.raises(RecipeError, match=r"short\.wav should be .* Found 399 samples, less than 25 ms.*--skip-bad"):
        Fbank().check(tmp_path / "short.wav")
    write_wav(tmp_path / "short.wav", np.full(400, 0.1))
    assert Fbank()(tmp_path / "short.wav").shape == (1, 1024, 128)


def window(front: WindowSpectrogram, waveform: torch.Tensor, seed: int | None = None) -> torch.Tensor:
    return front.of_batch(front.cut(waveform, Path("any.wav"), seed)[None])[0]


def test_the_centre_window_of_10_seconds_equals_a_plain_dft() -> None:
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, 12 * 16_000).astype(np.float32).astype(np.float64)
    found = window(WindowSpectrogram(), torch.from_numpy(samples).float())
    expected = reference(samples[40_000:120_000], length=80_000, n_fft=256, hop=128)
    assert found.shape == (1, 129, 626)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-3)


def test_a_short_sound_is_repeated_before_the_window_is_cut() -> None:
    front = WindowSpectrogram(rate=100, seconds=1.0, n_fft=16, hop=8)
    waveform = torch.rand(70)
    repeated = waveform.repeat(3)[50:150]
    assert torch.equal(window(front, waveform), Spectrogram(100, 1.0, 16, 8).transform(repeated))


def test_random_windows_cover_the_whole_range_and_no_more() -> None:
    front = WindowSpectrogram(rate=10, seconds=1.0, n_fft=4, hop=1)
    waveform = torch.linspace(-1, 1, 40)
    candidates = [Spectrogram(10, 1.0, 4, 1).transform(waveform[start : start + 10]) for start in range(11)]
    hits = set()
    for seed in range(200):
        drawn = window(front, waveform, seed)
        hits |= {start for start, candidate in enumerate(candidates) if torch.equal(drawn, candidate)}
        assert any(torch.equal(drawn, candidate) for candidate in candidates)
    assert hits == set(range(11))


def test_a_random_evaluation_window_is_a_function_of_seed_and_file_name(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "other/a.wav"):
        write_wav(tmp_path / name, np.random.default_rng(0).uniform(-0.5, 0.5, 4_000))
    sizes: dict[str, Any] = {"rate": 16_000, "seconds": 0.1, "n_fft": 64, "hop": 32}
    drawn = WindowSpectrogram(**sizes, crop="random")
    first = drawn(tmp_path / "a.wav")
    assert torch.equal(first, drawn(tmp_path / "a.wav"))
    assert torch.equal(first, drawn(tmp_path / "other/a.wav"))
    assert not torch.equal(first, drawn(tmp_path / "b.wav"))
    assert not torch.equal(first, WindowSpectrogram(**sizes, crop="random", seed=1)(tmp_path / "a.wav"))
    centred = WindowSpectrogram(**sizes)
    assert torch.equal(centred(tmp_path / "a.wav"), centred(tmp_path / "b.wav"))
    assert torch.equal(centred(tmp_path / "a.wav", seed=3), drawn(tmp_path / "b.wav", seed=3))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7)])
def test_stored_spectrograms_are_taken_as_they_are(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "clip.npy", values)
    (tmp_path / "clip.pkl").write_bytes(pickle.dumps(values.tolist()))
    torch.save(torch.from_numpy(values), tmp_path / "clip.pt")
    for ending in StoredSpectrogram.endings:
        found = StoredSpectrogram()(tmp_path / f"clip{ending}")
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.from_numpy(values).float().reshape(1, 5, 7))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(5), r"an array of shape \(5,\), not a matrix"),
        (np.zeros((2, 5, 7)), r"\(2, 5, 7\)"),
        (np.zeros((0, 5)), "not a matrix"),
        (np.full((2, 2), np.nan), "not finite"),
        (np.array(["a"]), "clip.npy"),
    ],
)
def test_a_stored_array_that_is_no_spectrogram_is_refused(
    tmp_path: Path, values: NDArray[np.float64], message: str
) -> None:
    np.save(tmp_path / "clip.npy", values)
    with pytest.raises(RecipeError, match=rf"{message}.*--skip-bad"):
        StoredSpectrogram().check(tmp_path / "clip.npy")


@pytest.mark.parametrize("ending", StoredSpectrogram.endings)
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02garbage"])
def test_a_damaged_stored_file_is_named(tmp_path: Path, ending: str, content: bytes) -> None:
    (tmp_path / f"clip{ending}").write_bytes(content)
    with pytest.raises(RecipeError, match=rf"clip\{ending}"):
        StoredSpectrogram()(tmp_path / f"clip{ending}")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this code ran",))


@pytest.mark.parametrize("ending", [".pkl", ".pt", ".npy"])
def test_stored_files_cannot_run_code(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"clip{ending}"
    if ending == ".pkl":
        path.write_bytes(pickle.dumps(Harmful()))
    elif ending == ".pt":
        torch.save(Harmful(), path)
    else:
        np.save(path, np.array([[Harmful()]], dtype=object), allow_pickle=True)
    with pytest.raises(RecipeError, match="clip"):
        StoredSpectrogram()(path)
    assert "this code ran" not in capsys.readouterr().out


def test_the_flags_choose_and_set_up_a_front_end() -> None:
    def chosen(*flags: str) -> object:
        return front_end(parse(AudioSettings, "x.py", "Reads sound.", flags), seed=5)

    assert chosen("--audio-frontend", "stft22k") == Spectrogram()
    assert chosen("--audio-frontend", "stft16k") == WindowSpectrogram(seed=5)
    assert chosen("--audio-frontend", "fbank") == Fbank()
    assert chosen("--audio-frontend", "stored") == StoredSpectrogram()
    assert chosen("--audio-frontend", "stft16k", "--crop", "random", "--hop", "64") == WindowSpectrogram(
        hop=64, crop="random", seed=5
    )
    assert chosen("--audio-frontend", "fbank", "--mel-bins", "64", "--fbank-frames", "10") == Fbank(bins=64, frames=10)
    assert chosen("--audio-frontend", "stft22k", "--audio-rate", "8000", "--audio-seconds", "1") == Spectrogram(8000, 1)
