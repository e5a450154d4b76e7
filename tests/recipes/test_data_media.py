"""The dataset: samples depend on (seed, epoch, index), and on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from recipe_common.data.readers.audio import Spectrogram
from recipe_common.data.readers.frames import Frames, frame_files
from recipe_common.data.samples.audiovisual import audio_source, frames_source
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sampler import ResumableBatchSampler
from recipe_common.data.samples.sources import SampleDataset, SampleFinder, Source, SplitSamples, drop_unreadable
from recipe_common.data.samples.splits import Split
from recipe_common.errors import RecipeError, message

from .cremad_tree import LABELS, label_of, names, write_frame, write_wav

SOUND = Spectrogram(rate=1000, seconds=0.2, n_fft=32, hop=20)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in names(1):
        write_wav(tmp_path / "AudioWAV" / f"{name}.wav", random.uniform(-0.5, 0.5, 300))
        for number in range(2):
            write_frame(tmp_path / "Image-01-FPS" / name / f"{30 * number:05d}.jpg")
            pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "Image-01-FPS" / name / f"{30 * number:05d}.jpg")
    return tmp_path


def open_clips(root: Path, *, training: bool, seed: int = 0) -> SampleDataset:
    return SampleDataset(read(root).train, sources_of(root), training=training, seed=seed)


def sources_of(root: Path) -> tuple[Source, ...]:
    return audio_source([root / "AudioWAV"], SOUND), frames_source([root / "Image-01-FPS"], Frames(1, 16))


def read(
    root: Path, *, min_found: float = 0.0, skip_bad: bool = False, labels: tuple[str, ...] = LABELS
) -> SplitSamples:
    rows = tuple(Row(name, label_of(name)) for name in names(1))
    return SampleFinder(labels, sources_of(root), min_found, skip_bad).read(Split(rows, (), ()))


def batches(dataset: SampleDataset, workers: int, sampler: ResumableBatchSampler | None = None) -> list[Any]:
    sampler = sampler or ResumableBatchSampler(len(dataset), 5, seed=0, shuffle=True)
    generator = torch.Generator()  # a loader without its own draws from the global generator
    return list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, generator=generator))


def assert_equal(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def test_a_sample_has_the_documented_shapes(root: Path) -> None:
    dataset = open_clips(root, training=True)
    audio, visual, label = dataset[0, 3]
    assert audio.shape == (1, 17, 11)
    assert visual.shape == (3, 1, 16, 16)
    assert LABELS[label] == label_of(dataset.samples[3].name)
    assert len(dataset) == 12


@pytest.mark.parametrize("training", [True, False])
def test_batches_do_not_depend_on_the_workers(root: Path, training: bool) -> None:
    dataset = open_clips(root, training=training)
    assert_equal(batches(dataset, workers=0), batches(dataset, workers=2))


def test_loading_leaves_the_global_generator_alone(root: Path) -> None:
    state = torch.get_rng_state()
    batches(open_clips(root, training=True), workers=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_epoch_continues_bitwise_in_its_middle(root: Path) -> None:
    dataset = open_clips(root, training=True)
    first = ResumableBatchSampler(len(dataset), 5, seed=0, shuffle=True)
    first.set_epoch(3)
    whole = batches(dataset, 0, first)
    first.advance()
    second = ResumableBatchSampler(len(dataset), 5, seed=0, shuffle=True)
    second.load_state_dict(first.state_dict())
    assert_equal(batches(open_clips(root, training=True), 2, second), whole[1:])


def test_training_varies_with_seed_epoch_and_index(root: Path) -> None:
    dataset = open_clips(root, training=True)
    pictures = [dataset[0, 0][1], dataset[1, 0][1], dataset[0, 1][1], open_clips(root, training=True, seed=1)[0, 0][1]]
    assert all(not torch.equal(pictures[0], other) for other in pictures[1:])
    assert torch.equal(pictures[0], dataset[0, 0][1])


def test_evaluation_is_the_same_in_every_epoch(root: Path) -> None:
    dataset = open_clips(root, training=False)
    assert torch.equal(dataset[0, 0][1], dataset[7, 0][1])


def test_clips_that_lack_a_modality_are_named(root: Path) -> None:
    rows = [Row(name, label_of(name)) for name in names(1)]
    (root / "AudioWAV" / f"{rows[0].name}.wav").unlink()
    for path in (root / "Image-01-FPS" / rows[1].name).iterdir():
        path.unlink()
    parts = read(root)
    assert parts.skipped == (f"train: {rows[0].name}: no wav file", f"train: {rows[1].name}: no frames")
    assert [sample.name for sample in parts.train] == [row.name for row in rows[2:]]
    assert parts.summary[0] == (
        f"train: 10 of 12 listed samples; 1 without wav file, such as {rows[0].name}; "
        f"1 without frames, such as {rows[1].name}"
    )
    with pytest.raises(
        RecipeError, match=r"hold at least 90% of the listed samples.*Found train: 10 of 12.*--min-found"
    ):
        read(root, min_found=0.9)


def test_classes_without_training_samples_are_named(root: Path) -> None:
    assert read(root, labels=(*LABELS, "CALM")).summary[-1] == "1 of 7 classes have no training sample: CALM"


def test_unreadable_clips_are_dropped_and_listed(root: Path) -> None:
    clips = open_clips(root, training=False).samples
    wav, frame = clips[0].media[0], frame_files(clips[1].media[1])[1]
    wav.write_bytes(b"")
    frame.write_bytes(frame.read_bytes()[:300])
    good, faults = drop_unreadable(clips, sources_of(root))
    assert good == clips[2:]
    assert [fault.split(":")[0] for fault in faults] == [clips[0].name, clips[1].name]
    assert str(frame) in faults[1]
    parts = read(root, skip_bad=True)
    assert parts.train == good
    assert len(parts.skipped) == 2
    assert "; 2 unreadable" in parts.summary[0]


@pytest.mark.parametrize("content", [b"P6\n0 8\n255\n", b"P6\n8 x\n255\n", b"BM" + bytes(40)])
def test_pictures_with_damaged_headers_are_dropped(root: Path, content: bytes) -> None:
    clips = open_clips(root, training=False).samples
    frame = frame_files(clips[1].media[1])[0]
    frame.write_bytes(content)
    good, faults = drop_unreadable(clips, sources_of(root))
    assert good == (clips[0], *clips[2:])
    assert str(frame) in faults[0]


def test_pointers_among_unreadable_clips_are_counted_with_their_remedy(root: Path) -> None:
    clips = open_clips(root, training=False).samples
    for clip in clips[:3]:
        clip.media[0].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    frame_files(clips[3].media[1])[0].write_bytes(b"no picture")
    assert "; 4 unreadable, 3 of them git-lfs pointers" in read(root, skip_bad=True).summary[0]
    with pytest.raises(RecipeError, match=r"3 of them git-lfs pointers: run `git lfs pull` in .*--min-found"):
        read(root, skip_bad=True, min_found=0.9)


def test_a_worker_tells_of_an_unreadable_file_as_the_main_process_does(root: Path) -> None:
    dataset = open_clips(root, training=False)
    dataset.samples[0].media[0].write_bytes(b"")
    told = []
    for workers in (0, 1):
        with pytest.raises(RecipeError) as caught:
            batches(dataset, workers)
        told.append(message(caught.value))
    assert told[0] == told[1]
    assert told[0].startswith(f"{dataset.samples[0].media[0]} should be a readable wav file. Found ")
