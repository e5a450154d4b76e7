"""Volumes in h5 files: which pixels of which slice are read, what is drawn in training, and every kind of bad file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from recipe_common.data.cache.headers import HeaderStore
from recipe_common.data.readers.volumes import (
    AllSlices,
    Case,
    LabelledSlices,
    Labels,
    open_case,
    open_cases,
    rotate_flip_noise,
    slices_per_case,
    window,
)
from recipe_common.errors import RecipeError

from .brats_tree import synthetic_case, write_h5

LABELS = Labels(4, stored={4: 3})


def a_case(folder: Path, number: int = 0, shape: tuple[int, ...] = (20, 24, 6), **options: Any) -> Case:
    return open_case(write_h5(folder / f"{number}.h5", *synthetic_case(number, shape), **options), 4, LABELS)


@pytest.mark.parametrize(
    ("length", "size", "inside", "outside"),
    [(240, 160, (40, 200), (0, 160)), (160, 240, (0, 160), (40, 200)), (7, 4, (1, 5), (0, 4)), (5, 5, (0, 5), (0, 5))],
)
def test_the_window_is_the_centre(length: int, size: int, inside: tuple[int, int], outside: tuple[int, int]) -> None:
    assert window(length, size) == (slice(*inside), slice(*outside))


@pytest.mark.parametrize("chunks", [True, (4, 20, 24, 1), (1, 10, 12, 3)])
def test_a_slice_is_the_centre_whatever_the_chunks(tmp_path: Path, chunks: Any) -> None:
    image, label = synthetic_case(0)
    case = a_case(tmp_path, chunks=chunks)
    for index in (0, 3, 5):
        found, classes = case.slice(index, 16)
        assert (found.dtype, classes.dtype) == (torch.float32, torch.int64)
        np.testing.assert_array_equal(found.numpy(), image[:, 2:18, 4:20, index])
        np.testing.assert_array_equal(classes.numpy(), label[2:18, 4:20, index])


def test_a_small_slice_gets_a_border_of_zeros(tmp_path: Path) -> None:
    image, label = synthetic_case(0)
    found, classes = a_case(tmp_path).slice(2, 32)
    expected = np.zeros((4, 32, 32), np.float32)
    expected[:, 6:26, 4:28] = image[..., 2]
    np.testing.assert_array_equal(found.numpy(), expected)
    assert int(classes.sum()) == int(label[..., 2].sum())
    assert not classes[:6].any()
    assert not classes[:, 28:].any()


def test_label_4_stands_for_3(tmp_path: Path) -> None:
    image, label = synthetic_case(0)
    raw = np.where(label == 3, 4, label).astype(np.uint8)
    case = open_case(write_h5(tmp_path / "raw.h5", image, raw), 4, LABELS)
    np.testing.assert_array_equal(case.slice(3, 24)[1][2:22].numpy(), label[..., 3])


def test_an_unknown_label_is_named(tmp_path: Path) -> None:
    image, label = synthetic_case(0)
    label[0, 0, 2] = 7
    case = open_case(write_h5(tmp_path / "a.h5", image, label), 4, LABELS)
    assert len(case.slice(1, 32)) == 2
    with pytest.raises(RecipeError, match=r"a\.h5.*labels 7, where 0, 1, 2, 3, 4 are known, in slice 2"):
        case.slice(2, 32)
    with pytest.raises(RecipeError, match="labels 7"):
        case.check()


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    image, label = synthetic_case(0)
    image[1, 10, 12, 4] = np.nan
    case = open_case(write_h5(tmp_path / "a.h5", image, label), 4, LABELS)
    with pytest.raises(RecipeError, match="not finite, in slice 4"):
        case.slice(4, 16)


@pytest.mark.parametrize(
    ("with_tumour", "first", "expected"),
    [((1, 3, 5), 4, (1, 3)), ((4, 5), 4, (4, 5)), ((), 4, (0, 1, 2, 3, 4, 5)), ((2,), 128, (2,))],
)
def test_which_slices_are_drawn_from(
    tmp_path: Path, with_tumour: tuple[int, ...], first: int, expected: tuple[int, ...]
) -> None:
    image, label = synthetic_case(0)
    label[:] = 0
    label[10, 10, list(with_tumour)] = 2
    case = open_case(write_h5(tmp_path / "a.h5", image, label), 4, LABELS)
    assert case.slices_with_label(first) == expected


def not_h5(path: Path) -> None:
    path.write_bytes(b"not a file of this kind" * 100)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[name]

    return change


def replaced(name: str, values: NDArray[Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[name]
            file[name] = values

    return change


def grouped(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("image")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (not_h5, "signature"),
        (cut_short, "truncated"),
        (empty, "an empty file"),
        (grouped, "no dataset, where"),
        (without("label"), r"image \(4, 20, 24, 6\), where"),
        (without("image"), r"label \(20, 24, 6\), where"),
        (replaced("image", np.zeros((3, 20, 24, 6), np.float32)), r"image \(3, 20, 24, 6\), label"),
        (replaced("image", np.zeros((20, 24, 6, 4), np.float32)), r"image \(20, 24, 6, 4\)"),
        (replaced("image", np.zeros((4, 20, 24, 6), np.int16)), "of floats"),
        (replaced("label", np.zeros((20, 24, 5), np.uint8)), r"label \(20, 24, 5\)"),
        (replaced("label", np.zeros((20, 24, 6), np.float32)), "of integers"),
    ],
)
def test_a_file_with_another_content_is_refused(tmp_path: Path, damage: Callable[[Path], None], found: str) -> None:
    good = write_h5(tmp_path / "good.h5", *synthetic_case(1))
    path = write_h5(tmp_path / "a.h5", *synthetic_case(0))
    damage(path)
    store = HeaderStore(tmp_path, tmp_path)
    with pytest.raises(RecipeError, match=rf"(?s)a\.h5 should .* Found .*{found}.*: download .*--skip-bad"):
        open_cases({"train": [path, good]}, 4, LABELS, store, skip_bad=False)
    cases, faults = open_cases({"train": [path, good]}, 4, LABELS, store, skip_bad=True)["train"]
    assert [case.path for case in cases] == [good]
    assert len(faults) == 1
    assert faults[0].startswith(f"a.h5: {path} should")


def test_damage_inside_a_file_is_found_when_it_is_read_or_before(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", *synthetic_case(0))
    with h5py.File(path) as file:
        chunk = file["image"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(bytes(content))
    store = HeaderStore(tmp_path, tmp_path)
    (case,), _ = open_cases({"train": [path]}, 4, LABELS, store, skip_bad=False)["train"]
    with pytest.raises(RecipeError, match=r"a\.h5"):
        case.slice(0, 20)
    assert open_cases({"train": [path]}, 4, LABELS, store, skip_bad=True)["train"][0] == ()


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, ...]:
    return tuple(a_case(tmp_path, number) for number in range(3))


def training_set(cases: tuple[Case, ...], seed: int = 5) -> LabelledSlices:
    return LabelledSlices(cases, 16, 128, seed=seed, augment=rotate_flip_noise)


def equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_training_sample_depends_on_seed_epoch_and_index_alone(cases: tuple[Case, ...]) -> None:
    dataset = training_set(cases)
    keys = [(epoch, index) for epoch in range(4) for index in range(3)]
    samples = {key: dataset[key] for key in keys}
    torch.manual_seed(99)
    again = training_set(cases)
    assert all(equal(again[key], samples[key]) for key in reversed(keys))
    assert not all(equal(samples[epoch, 0], samples[0, 0]) for epoch in (1, 2, 3))
    assert not all(equal(training_set(cases, seed=6)[key], samples[key]) for key in keys)
    *images, label = samples[0, 0]
    assert [image.shape for image in images] == [(1, 16, 16)] * 4
    assert (label.shape, label.dtype) == ((16, 16), torch.int64)


def test_only_slices_with_tumour_are_trained_on(cases: tuple[Case, ...]) -> None:
    dataset = training_set(cases)
    assert all(dataset[epoch, 1][-1].any() for epoch in range(20))


def test_one_slice_per_case_is_the_same_in_every_epoch_of_evaluation(cases: tuple[Case, ...]) -> None:
    dataset = LabelledSlices(cases, 16, 128, seed=0)
    image, label = synthetic_case(2)
    *images, classes = dataset[0, 2]
    assert equal(dataset[7, 2], dataset[0, 2])
    (index,) = [i for i in range(6) if np.array_equal(classes.numpy(), label[2:18, 4:20, i])]
    np.testing.assert_array_equal(torch.cat(images).numpy(), image[:, 2:18, 4:20, index])


def test_all_slices_come_case_by_case(cases: tuple[Case, ...]) -> None:
    dataset = AllSlices(cases, 16)
    assert len(dataset) == 18
    for number, index in ((0, 0), (1, 5), (2, 3)):
        image, label = synthetic_case(number)
        *images, classes = dataset[3, 6 * number + index]
        np.testing.assert_array_equal(torch.cat(images).numpy(), image[:, 2:18, 4:20, index])
        np.testing.assert_array_equal(classes.numpy(), label[2:18, 4:20, index])
    assert len(AllSlices((), 16)) == 0


def test_volumes_of_different_depth_are_refused(tmp_path: Path, cases: tuple[Case, ...]) -> None:
    other = a_case(tmp_path, 9, (20, 24, 8))
    assert slices_per_case(cases) == 6
    with pytest.raises(RecipeError, match=r"6 in 2\.h5, 8 in 9\.h5"):
        slices_per_case((*cases, other))
    with pytest.raises(RecipeError, match="no volume"):
        slices_per_case(())


def test_workers_read_what_the_process_itself_reads(cases: tuple[Case, ...]) -> None:
    dataset = AllSlices(cases, 16)
    here = [dataset[0, index] for index in range(18)]  # opens files before the worker starts
    batches = [[(0, index) for index in range(start, start + 9)] for start in (0, 9)]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=1)
    there = [torch.cat(parts) for parts in zip(*loader, strict=True)]
    assert equal(tuple(there), tuple(torch.stack(parts) for parts in zip(*here, strict=True)))
    assert equal(pickle.loads(pickle.dumps(dataset))[0, 4], here[4])


def test_rotation_and_flip_are_those_of_numpy_and_move_image_and_label_together() -> None:
    image = torch.arange(32.0).reshape(2, 4, 4)
    seen, noisy = set(), 0
    for seed in range(600):
        found, label = rotate_flip_noise(image, image[0].long(), np.random.default_rng(seed))
        random = np.random.default_rng(seed)
        turns, side = int(random.integers(3)), int(random.integers(2))
        expected = [np.flip(np.rot90(each, turns), side) for each in image.numpy()]
        np.testing.assert_array_equal(label.numpy(), expected[0].astype(np.int64))
        difference = found.numpy() - np.stack(expected)
        noisy += bool(difference.any())
        assert np.abs(difference).max() < 0.6  # 6 standard deviations of 0.1
        assert found.dtype == torch.float32
        seen.add((turns, side))
    assert seen == {(turns, side) for turns in range(3) for side in range(2)}
    assert 35 < noisy < 90
