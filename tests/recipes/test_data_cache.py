"""The cache: its format, what a kill or a change does to it, and that samples from it are those from the files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import cremad
from recipe_common.cli import main
from recipe_common.data.cache.decoded import entries_of, open_cache
from recipe_common.data.cache.feed import CachedDataset, FeedSettings, beside, feed
from recipe_common.data.cache.pipelines import WaveformPipeline
from recipe_common.data.cache.shards import Shard, digest, write_shard
from recipe_common.data.cache.store import Store
from recipe_common.data.readers.audio import Fbank, Spectrogram, WindowSpectrogram
from recipe_common.data.readers.frames import Frames
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.readers.two_stream import TwoStreams, two_stream_sources
from recipe_common.data.samples.audiovisual import audio_source, frames_source
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sampler import ResumableBatchSampler
from recipe_common.data.samples.sources import SampleDataset, SampleFinder, Source, SplitSamples
from recipe_common.data.samples.splits import Split
from recipe_common.data.synthetic.cremad import synthetic_root
from recipe_common.errors import RecipeError
from recipe_common.training import run
from recipe_common.training.interrupt import StopRequest
from recipe_common.training.loaders import DeviceLoader, build_loaders
from recipe_common.training.precision import Precision
from recipe_common.training.settings import identity
from recipes.two_step_training import StopAtLook
from recipes.without_pictures import without_pictures

from .call import settings_of
from .cremad_sized_clips import open_data
from .cremad_tree import LABELS, label_of, names, write_list
from .ucf101_tree import write_clip

SOUND = Spectrogram(rate=1000, seconds=0.5, n_fft=32, hop=20)
FRAMES = Frames(2, 16)
LEVEL = 1 / 255 / 0.224
"""One of 256 levels of brightness, after normalisation."""


def write_tree(root: Path, clips: Sequence[str], rate: int = 1000, size: tuple[int, int] = (20, 24)) -> Path:
    """Write clips of noise: mono 16-bit sound, and three frames of a height and width."""
    random = np.random.default_rng(0)
    for index, name in enumerate(clips):
        sound = root / "audio" / f"{name}.wav"
        sound.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(sound, random.uniform(-0.9, 0.9, 300 + 40 * index), rate, "PCM_16")
        for number in range(3):
            frame = root / "Image-01-FPS" / name / f"{30 * number:05d}.jpg"
            frame.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(frame)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data", names(1))


def sources_of(root: Path, sound: Any = SOUND, frames: Frames = FRAMES, choice: str = "segments") -> tuple[Source, ...]:
    frame_source = frames_source([root / "Image-01-FPS"], frames, choice=choice)
    return audio_source([root / "audio"], sound), frame_source


def parts_of(sources: tuple[Source, ...]) -> SplitSamples:
    rows = tuple(Row(name, label_of(name)) for name in names(1))
    return SampleFinder(LABELS, sources, 1.0, False).read(Split(rows[:8], rows[8:10], rows[10:]))


def cached(root: Path, sources: tuple[Source, ...], *, training: bool = True, **flags: Any) -> CachedDataset:
    settings = FeedSettings(**{"cache": str(root.parent / "cache"), "cache_workers": 1, **flags})
    parts = parts_of(sources)
    dataset = feed(settings, root, parts, sources, seed=0)(parts.train, training=training)
    assert isinstance(dataset, CachedDataset)
    return dataset


def assert_same_samples(one: Any, other: Any, epochs: Sequence[int] = (0, 1)) -> None:
    assert len(one) == len(other) > 0
    for key in [(epoch, index) for epoch in epochs for index in range(len(one))]:
        *tensors, label = one[key]
        *expected, expected_label = other[key]
        assert label == expected_label
        assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in expected]
        assert all(torch.equal(x, y) for x, y in zip(tensors, expected, strict=True))


FRONT_ENDS = {
    "spectrogram, 16-bit": SOUND,
    "spectrogram, resampled": Spectrogram(rate=800, seconds=0.5, n_fft=32, hop=20),
    "window": WindowSpectrogram(rate=1000, seconds=0.2, n_fft=32, hop=20),
    "window, random in evaluation": WindowSpectrogram(rate=1000, seconds=0.2, n_fft=32, hop=20, crop="random"),
    "filter banks": Fbank(rate=1000, bins=8, frames=30),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sound", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_samples_from_the_cache_are_bitwise_those_from_the_files(root: Path, sound: Any, training: bool) -> None:
    sources = sources_of(root, sound)
    expected = SampleDataset(parts_of(sources).train, sources, training=training, seed=0)
    assert_same_samples(cached(root, sources, training=training), expected)


@pytest.mark.parametrize("choice", ["start", "first"])
def test_only_the_frames_that_a_choice_can_take_are_kept(root: Path, choice: str) -> None:
    sources = sources_of(root, choice=choice)
    dataset = cached(root, sources)
    assert_same_samples(dataset, SampleDataset(parts_of(sources).train, sources, training=True, seed=0))
    assert len(shards(root, "visual")[0][0]) == 2


def spoil(root: Path) -> str:
    """Write a value that is not finite into the sound of the first clip, and return its name."""
    name = names(1)[0]
    samples = np.zeros(400)
    samples[399] = np.nan
    soundfile.write(root / "audio" / f"{name}.wav", samples, 1000, "FLOAT")
    return name


@pytest.mark.parametrize("sound", [FRONT_ENDS["window"], SOUND], ids=["waveform", "tensor"])
def test_sound_with_a_value_that_is_not_finite_is_named_and_can_be_left_out(root: Path, sound: Any) -> None:
    name = spoil(root)
    sources = sources_of(root, sound)
    with pytest.raises(RecipeError, match=rf"{name}\.wav.*1 of 400 values not finite.*--skip-bad"):
        cached(root, sources)
    rows = tuple(Row(name, label_of(name)) for name in names(1))
    found = SampleFinder(LABELS, sources, 0.5, True).read(Split(rows[:8], rows[8:10], rows[10:]))
    assert [sample.name for sample in found.train] == names(1)[1:8]
    assert [line for line in found.skipped if name in line and "not finite" in line]


@pytest.mark.parametrize("sound", [FRONT_ENDS["window"], SOUND], ids=["waveform", "tensor"])
def test_values_in_an_older_cache_that_are_not_finite_are_named(root: Path, sound: Any) -> None:
    source = sources_of(root, sound)[0]
    assert source.pipeline is not None
    pipeline, path = source.pipeline(0), root / "audio" / f"{names(1)[0]}.wav"
    kept = [torch.full((600,), torch.nan)]
    with pytest.raises(RecipeError, match=rf"{path.name}.*not finite, kept in the cache.*--skip-bad"):
        pipeline.pick(kept, path, None)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_check_of_cached_values_is_about_each_of_them(root: Path, value: float) -> None:
    source = sources_of(root, SOUND)[0]
    assert source.pipeline is not None
    pipeline, path = source.pipeline(0), root / "audio" / f"{names(1)[0]}.wav"
    overflows = torch.full((1, 3, 4), 3e38)  # finite, but not their sum
    assert torch.equal(pipeline.pick([overflows], path, None), overflows)
    for place in range(12):
        bad = torch.zeros(1, 3, 4)
        bad.view(-1)[place] = value
        bad.view(-1)[place - 1] = -value
        with pytest.raises(RecipeError, match="not finite, kept in the cache"):
            pipeline.pick([bad], path, None)


def test_a_spectrogram_of_the_whole_sound_is_kept_as_it_reaches_the_model(root: Path) -> None:
    dataset = cached(root, sources_of(root))
    kept = {name: shard[at][0] for shard in shards(root, "audio") for at, (name, _) in enumerate(shard.keys)}
    for index, sample in enumerate(dataset.samples):
        assert torch.equal(kept[sample.name], SOUND(root / "audio" / f"{sample.name}.wav"))
        assert torch.equal(dataset[0, index][0], kept[sample.name])


def test_stored_spectrograms_come_back_as_they_are(root: Path) -> None:
    for index, name in enumerate(names(1)):
        np.save(root / "audio" / f"{name}.npy", np.full((4, 6), index, np.float32))
    sources = sources_of(root, StoredSpectrogram())
    assert_same_samples(cached(root, sources), SampleDataset(parts_of(sources).train, sources, training=True, seed=0))


@pytest.mark.parametrize("flip", ["clip", "picture"])
@pytest.mark.parametrize("training", [True, False])
def test_two_streams_from_the_cache_are_those_from_the_files(tmp_path: Path, training: bool, flip: str) -> None:
    root = tmp_path / "data"
    for name in names(1):
        write_clip(root, name, frames=7)
    flow = root / "tvl1_flow"
    sources = two_stream_sources([root / "jpegs_256"], [flow / "u"], [flow / "v"], TwoStreams(3, 6, flip))
    dataset = cached(root, sources, training=training)
    assert_same_samples(dataset, SampleDataset(parts_of(sources).train, sources, training=training, seed=0))
    keys = [(3, index) for index in range(8)]
    on_device = dataset.finish_packed(dataset.pack_batch(dataset.__getitems__(keys)))
    assert all(torch.equal(x, y) for x, y in zip(on_device, batch(dataset, keys), strict=True))


def batch(dataset: CachedDataset, keys: list[tuple[int, int]]) -> list[Any]:
    return dataset.finish_batch(dataset.__getitems__(keys))


def test_a_batch_is_its_samples(root: Path) -> None:
    dataset = cached(root, sources_of(root))
    keys = [(2, index) for index in (5, 0, 3)]
    audio, visual, labels = batch(dataset, keys)
    assert audio.shape == (3, 1, 17, 26)
    assert visual.shape == (3, 3, 2, 16, 16)
    for number, key in enumerate(keys):
        assert torch.equal(audio[number], dataset[key][0])
        assert torch.equal(visual[number], dataset[key][1])
        assert labels[number] == dataset[key][2]


@pytest.mark.parametrize("in_worker", [False, True])
def test_workers_and_continuing_in_the_middle_change_nothing(root: Path, in_worker: bool) -> None:
    dataset = cached(root, sources_of(root))

    def batches(offset: int, workers: int) -> list[Any]:
        sampler = ResumableBatchSampler(len(dataset), 3, seed=0, shuffle=True)
        sampler.set_epoch(4)
        sampler.offset = offset
        settings: dict[str, Any] = {"batch_sampler": sampler, "num_workers": workers, "generator": torch.Generator()}
        return list(DataLoader(dataset, collate_fn=dataset.finish_batch, **settings))

    state = torch.get_rng_state()
    whole, rest = batches(0, 0), batches(1, int(in_worker))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(whole) == len(rest) + 1 == 3
    for left, right in zip(whole[1:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("sound", "kept"), [(FRONT_ENDS["window"], torch.int16), (SOUND, torch.float32)], ids=["waveform", "tensor"]
)
@pytest.mark.parametrize("training", [True, False])
def test_transforms_on_the_device_equal_those_on_the_cpu_to_one_level(
    root: Path, training: bool, sound: Any, kept: torch.dtype
) -> None:
    dataset = cached(root, sources_of(root, sound), training=training)
    keys = [(epoch, index) for epoch in range(4) for index in range(len(dataset))]
    audio, visual, labels = batch(dataset, keys)
    packed = dataset.pack_batch(dataset.__getitems__(keys))
    assert packed[0][0].dtype == kept
    assert packed[1][0].dtype == torch.uint8
    found = dataset.finish_packed(packed)
    torch.testing.assert_close(found[0], audio, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], visual, atol=1.01 * LEVEL, rtol=0)
    assert (found[1] - visual).abs().mean() < 0.35 * LEVEL
    assert found[1].is_contiguous()
    assert torch.equal(found[2], labels)


def test_the_flags_decide_where_batches_are_finished(root: Path) -> None:
    write_lists(root)
    kinds = []
    for flag in ([], ["--device-transforms"], ["--no-device-transforms"]):
        flags = ["--data-root", str(root), "--cache", str(root.parent / "cache"), *SMALL, *flag]
        settings = settings_of(cremad.RECIPE, *flags)
        loaders = build_loaders(settings, cremad.load(settings), Precision(torch.device("cpu"), None, False))
        kinds.append(isinstance(loaders.train, DeviceLoader))
        audio, visual, labels = next(iter(loaders.val))
        assert (audio.shape[1:], visual.shape[1:], labels.dtype) == ((1, 17, 26), (3, 1, 16, 16), torch.int64)
    assert kinds == [False, True, False]


def test_large_pictures_are_kept_smaller_in_their_proportions(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", names(1), size=(48, 64))
    sources = sources_of(root)
    dataset = cached(root, sources, cache_size=24)
    frame = shards(root, "visual")[0][0][0]
    assert frame.shape == (24, 32, 3)
    with Image.open(root / "Image-01-FPS" / shards(root, "visual")[0].keys[0][0] / "00000.jpg") as picture:
        expected = np.asarray(picture.convert("RGB").resize((32, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(frame.numpy(), expected)
    assert dataset[0, 0][1].shape == (3, 2, 16, 16)


# The files of the cache.


def shards(root: Path, modality: str) -> list[Shard]:
    return [Shard(path) for path in sorted((root.parent / "cache").glob(f"{modality}-*/*.safetensors"))]


def test_a_shard_is_as_documented(root: Path) -> None:
    cached(root, sources_of(root))
    for modality in ("audio", "visual"):
        (path,) = (root.parent / "cache").glob(f"{modality}-*/*.safetensors")
        with safe_open(path, "pt") as file:
            (text,) = file.metadata().values()
        content, tensors = json.loads(text), load_file(path)
        assert path.name == f"00000-of-00001-{hashlib.sha256(json.dumps(text).encode()).hexdigest()[:16]}.safetensors"
        assert (content["format"], content["modality"]) == (2, modality)
        assert [name for name, _ in content["samples"]] == sorted(names(1))
        for number, (name, _) in enumerate(content["samples"]):
            found = tensors.pop(f"{number:05d}/000000")
            assert np.array_equal(found, (expected_sound if modality == "audio" else expected_frames)(root, name))
        assert not tensors
        assert json.loads((path.parent / "cache.json").read_text()) == {
            **{key: content[key] for key in ("format", "modality", "settings")},
            "samples per file": 64,
        }


def expected_sound(root: Path, name: str) -> Any:
    return SOUND(root / "audio" / f"{name}.wav")[None].numpy()


def expected_frames(root: Path, name: str) -> Any:
    frames = []
    for path in sorted((root / "Image-01-FPS" / name).iterdir()):
        with Image.open(path) as picture:
            frames.append(np.asarray(picture.convert("RGB")))
    return np.stack(frames)


def test_arrays_of_any_types_and_shapes_come_back(tmp_path: Path) -> None:
    small, large = torch.arange(6, dtype=torch.uint8).view(2, 3), torch.arange(8, dtype=torch.uint8).view(4, 2)
    samples = [
        [small, small + 1, large, small + 2],
        [torch.tensor(2.5)],
        [small, small.short()],
        [],
        [torch.zeros(0), large.t()],
    ]
    header = json.dumps({"samples": [("name", str(number)) for number in range(len(samples))]})
    path = tmp_path / f"00000-of-00001-{digest(header)}.safetensors"
    write_shard(path, header, samples)
    for shard in (Shard(path), pickle.loads(pickle.dumps(Shard(path)))):
        for number, expected in enumerate(samples):
            found = list(shard[number])
            assert [array.dtype for array in found] == [array.dtype for array in expected]
            assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_a_shard_goes_to_other_processes_without_what_it_has_opened(root: Path) -> None:
    cached(root, sources_of(root))
    shard = shards(root, "visual")[0]
    before = pickle.dumps(shard)
    assert shard[3][1].shape == (20, 24, 3)
    assert pickle.dumps(shard) == before
    assert vars(pickle.loads(before)) == {"path": shard.path}


def test_one_frame_is_read_without_the_others(root: Path) -> None:
    cached(root, sources_of(root))
    shard = shards(root, "visual")[0]
    frame = shard[0][2]
    assert frame.data_ptr() == shard[0][0].data_ptr() + 2 * frame.nbytes


@pytest.mark.parametrize(("room", "expected"), [(1 << 20, 64), (20 * 24 * 3 * 3 * 5, 4), (1, 1)])
def test_the_bytes_of_a_sample_decide_how_many_a_file_holds(
    root: Path, monkeypatch: pytest.MonkeyPatch, room: int, expected: int
) -> None:
    monkeypatch.setattr("recipe_common.data.cache.decoded.SHARD_BYTES", room)
    cached(root, sources_of(root))
    before = [shard.path for shard in shards(root, "visual")]
    (note,) = (root.parent / "cache").glob("visual-*/cache.json")
    assert json.loads(note.read_text())["samples per file"] == expected
    assert (len(before) == 1) == (expected == 64)
    monkeypatch.setattr("recipe_common.data.cache.decoded.SHARD_BYTES", 1 << 12)  # the first build has decided
    cached(root, sources_of(root))
    assert [shard.path for shard in shards(root, "visual")] == before


@pytest.mark.parametrize("text", ["{", "[]", '{"samples per file": 0}', '{"samples per file": null}'])
def test_a_damaged_note_is_named_with_the_fix(root: Path, text: str) -> None:
    cached(root, sources_of(root))
    (note,) = (root.parent / "cache").glob("audio-*/cache.json")
    note.write_text(text)
    with pytest.raises(RecipeError, match=r"cache\.json should be JSON with .*: remove .*audio-"):
        cached(root, sources_of(root))


def test_an_unchanged_cache_is_not_touched(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached(root, sources_of(root))
    before = {shard.path: shard.path.stat().st_mtime_ns for shard in shards(root, "*")}
    assert "built" in capsys.readouterr().out
    cached(root, sources_of(root), training=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(shards(root, "*")) == len(before) == 2
    assert "built" not in capsys.readouterr().out


def change(path: Path) -> None:
    soundfile.write(path, np.full(100, 0.25), 1000, "PCM_16")


def test_a_changed_file_is_decoded_anew_and_nothing_else(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipe_common.data.cache.decoded.PER_SHARD", 3)
    cached(root, sources_of(root))
    before = [shard.path for shard in shards(root, "*")]
    change(root / "audio" / f"{names(1)[0]}.wav")
    audio = cached(root, sources_of(root), training=False)[0, 0][0]
    assert torch.equal(audio, SOUND.transform(torch.full((100,), 0.25)))
    after = [shard.path for shard in shards(root, "*")]
    assert len(after) == len(before) > 4
    assert len(set(before) - set(after)) == 1


def test_a_changed_setting_makes_another_cache_and_keeps_the_old_one(root: Path) -> None:
    cached(root, sources_of(root, FRONT_ENDS["window"]))
    cached(root, sources_of(root, WindowSpectrogram(rate=800, seconds=0.2, n_fft=32, hop=20)), cache_size=10)
    assert len(shards(root, "audio")) == len(shards(root, "visual")) == 2
    # windows and steps of the spectrogram of a part, and the size of crops, are applied to what is kept
    cached(root, sources_of(root, WindowSpectrogram(rate=1000, seconds=0.3, n_fft=64, hop=10), Frames(1, 8)))
    assert len(shards(root, "audio")) == len(shards(root, "visual")) == 2
    # a spectrogram of the whole sound is kept itself
    cached(root, sources_of(root))
    cached(root, sources_of(root, Spectrogram(rate=1000, seconds=0.5, n_fft=64, hop=20)))
    assert (len(shards(root, "audio")), len(shards(root, "visual"))) == (4, 2)


def test_another_format_makes_another_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(root, sources_of(root))
    monkeypatch.setattr("recipe_common.data.cache.decoded.FORMAT", 3)
    cached(root, sources_of(root))
    assert len(shards(root, "audio")) == 2


@pytest.mark.parametrize("kept", [0, 6, 30, -41, -1])
def test_a_file_that_is_cut_off_is_noticed(root: Path, kept: int) -> None:
    cached(root, sources_of(root))
    path = shards(root, "visual")[0].path
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RecipeError, match=r"\.safetensors should be a whole file of stored samples.*: remove it"):
        cached(root, sources_of(root))
    path.unlink()
    sources = sources_of(root)
    assert_same_samples(cached(root, sources), SampleDataset(parts_of(sources).train, sources, training=True, seed=0))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b"Spectrogram", b"Spectrogrom", "its metadata are damaged"),
        (b"00003/000000", b"00093/000000", "out of range"),
        (b"00003/000000", b"abcde/000000", "invalid literal"),
        (b'"dtype":"F32"', b'"dtype":"F64"', "header"),
        (b'"cache"', b'"cachE"', "cache"),
        (b"__metadata__", b"__metatada__", "header"),
    ],
)
def test_a_damaged_header_is_noticed(root: Path, old: bytes, new: bytes, what: str) -> None:
    cached(root, sources_of(root))
    path = shards(root, "audio")[0].path
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(RecipeError, match=rf"should be a whole file of stored samples.*{what}"):
        cached(root, sources_of(root))


def test_a_file_that_cannot_be_decoded_is_named_and_leaves_no_cache(root: Path) -> None:
    sources = sources_of(root)
    bad = sorted((root / "audio").iterdir())[4]
    bad.write_bytes(b"no sound")
    with pytest.raises(RecipeError, match=rf"{bad.name}.*--skip-bad"):
        cached(root, sources)
    assert not list((root.parent / "cache").rglob("*.safetensors"))
    assert not list((root.parent / "cache").rglob("*.partial"))


def test_a_folder_that_cannot_be_written_is_named_with_the_flag(root: Path) -> None:
    (root.parent / "cache").write_text("a file")
    with pytest.raises(RecipeError, match=r"cache folder .* should be writable.*--cache"):
        cached(root, sources_of(root))


def test_too_little_room_is_known_before_anything_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(RecipeError, match=r"should have room for the cache.*--cache-size"):
        cached(root, sources_of(root))
    assert not list((root.parent / "cache").rglob("*.safetensors"))


def test_a_full_disk_is_explained_and_leaves_nothing_half_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecipeError, match=r"should have room for the cache.*No space left.*what is built stays"):
        cached(root, sources_of(root))
    assert {path.name for path in (root.parent / "cache").glob("*/*")} == {".lock", "cache.json"}


@pytest.mark.slow
def test_processes_build_what_one_builds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipe_common.data.cache.decoded.PER_SHARD", 3)
    pipeline = WaveformPipeline(SOUND)
    entries = entries_of([(name, root / "audio" / f"{name}.wav") for name in names(1)], pipeline)
    open_cache(root.parent / "one", "audio", pipeline, entries, workers=1)
    monkeypatch.setattr("recipe_common.data.cache.decoded.FEW_SHARDS", 1)
    cache = open_cache(root.parent / "several", "audio", pipeline, entries, workers=2)
    assert isinstance(cache, Store)
    files = [
        {path.name: path.read_bytes() for path in (root.parent / each).rglob("*.safetensors")}
        for each in ("one", "several")
    ]
    assert files[0] == files[1]
    assert len(files[0]) > 2


# Killed while it builds, with two processes.
BUILD = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from recipe_common.data.cache import decoded as cache
from recipe_common.data.readers.audio import Spectrogram
from recipe_common.data.cache.pipelines import WaveformPipeline
import attrs

@attrs.frozen
class Slow(WaveformPipeline):
    def decode(self, media):
        time.sleep(0.3)
        return super().decode(media)

if __name__ == "__main__":
    cache.PER_SHARD, cache.FEW_SHARDS = 1, 0
    pipeline = Slow(Spectrogram(rate=1000, seconds=0.5, n_fft=32, hop=20))
    entries = cache.entries_of([(path.stem, path) for path in sorted(Path({audio!r}).iterdir())], pipeline)
    cache.open_cache(Path({folder!r}), "audio", pipeline, entries, workers=2)
"""


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_kill_while_building_loses_at_most_what_was_in_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root.parent / "cache"
    script = root.parent / "build.py"
    paths = [str(Path(cremad.__file__).parent)]
    script.write_text(BUILD.format(paths=paths, audio=str(root / "audio"), folder=str(folder)))
    process = subprocess.Popen([sys.executable, script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(lambda: len(list(folder.rglob("*.safetensors"))) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # until the children have noticed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert 3 <= len(before) < 12
    assert all(Shard(path).keys for path in before)
    monkeypatch.setattr("recipe_common.data.cache.decoded.PER_SHARD", 1)
    pipeline = WaveformPipeline(SOUND)
    media = [(path.stem, path) for path in sorted((root / "audio").iterdir())]
    entries = entries_of(media, pipeline)
    cache = open_cache(folder, "audio", pipeline, entries, workers=1)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}.items()
    assert not list(folder.rglob("*.partial"))
    for entry in entries:
        expected = soundfile.read(entry.content, dtype="int16")[0]
        assert np.array_equal(cache[cache.places[entry.key]][0].numpy(), expected)


# Runs.

SMALL = [
    *("--audio-rate", "1000", "--audio-seconds", "0.5", "--n-fft", "32", "--hop", "20", "--image-size", "16"),
    *("--batch-size", "3", "--device", "cpu", "--epochs", "1"),
    *("--lr", "1e-4"),  # at the paper's, batch norms of so few samples let the weights explode
]


def write_lists(root: Path) -> None:
    write_list(root / "my_train.csv", names(1)[:8])
    write_list(root / "val.csv", names(1)[8:10])
    write_list(root / "test.csv", names(1)[10:])
    write_list(root / "train.csv", names(1)[:10])


def weights(output: Path) -> dict[str, Any]:
    model: dict[str, Any] = torch.load(output / "none" / "last.pt", weights_only=True)["model"]
    return model


@pytest.fixture
def _no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("where", ["--no-device-transforms", "--device-transforms"])
def test_a_run_is_continued_bitwise_in_the_middle_of_an_epoch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    write_lists(root)
    flags = ["--data-root", str(root), "--cache", "auto", where, *SMALL]
    assert main(cremad.RECIPE, [*flags, "--output", str(tmp_path / "whole")]) == 0
    assert list(beside(root).glob("audio-*/*.safetensors"))

    @contextmanager
    def stop() -> Iterator[StopRequest]:
        yield StopAtLook(2)

    with monkeypatch.context() as patch:
        patch.setattr(run, "stop_on_signal", stop)
        assert main(cremad.RECIPE, [*flags, "--output", str(tmp_path / "parts")]) == 130
    assert main(cremad.RECIPE, [*flags, "--output", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_where_the_cache_is_does_not_matter_but_whether_there_is_one_does(tmp_path: Path) -> None:
    def settings(*flags: str) -> dict[str, Any]:
        return identity(settings_of(cremad.RECIPE, *flags), "none", {})

    assert settings("--cache", "a") == settings("--cache", "b", "--cache-workers", "3", "--cache-size", "256")
    assert settings("--cache", "a") != settings()
    assert settings("--cache", "a", "--cache-size", "128") != settings("--cache", "a")
    assert settings() == settings("--cache-size", "128")


def test_the_synthetic_set_has_a_cache_beside_it() -> None:
    data = open_data(cremad.RECIPE, "--cache", "auto")
    assert_same_samples(Head(data.train), Head(open_data(cremad.RECIPE).train))
    assert beside(synthetic_root()).is_dir()


class Head:
    """The first samples of a dataset."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.dataset[key]
