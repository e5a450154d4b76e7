"""npy files: what is read, to the last bit, and every kind of file that is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recipe_common.data.readers.arrays import ArrayFile, Pictures, brightness_scale, read_class_indices, rows_not_finite
from recipe_common.errors import RecipeError


def saved(folder: Path, array: Any, name: str = "data.npy") -> Path:
    path = folder / name
    np.save(path, array, allow_pickle=np.asarray(array).dtype == object)
    return path


def counting(*shape: int) -> NDArray[np.uint8]:
    return (np.arange(np.prod(shape)) % 256).astype(np.uint8).reshape(shape)


@pytest.mark.parametrize("shape", [(5, 16), (5, 4, 4), (5, 1, 4, 4)])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
def test_pictures_are_rows_divided_by_255(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    file = ArrayFile(saved(tmp_path, counting(*shape).astype(dtype)))
    pictures = Pictures(file, 4, [4, 0], brightness_scale(file))
    assert len(pictures) == 2
    expected = torch.tensor([[[64 + 4 * row + column for column in range(4)] for row in range(4)]]) / 255
    assert pictures[0].dtype == torch.float32
    torch.testing.assert_close(pictures[0], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(pictures[1], expected - 64 / 255, rtol=1e-6, atol=1e-7)


def test_arrays_in_the_order_of_fortran_are_read_alike(tmp_path: Path) -> None:
    values = counting(3, 4, 4)
    one = ArrayFile(saved(tmp_path, values, "c.npy"))
    other = ArrayFile(saved(tmp_path, np.asfortranarray(values), "fortran.npy"))
    assert torch.equal(Pictures(one, 4, [2], 1.0)[0], Pictures(other, 4, [2], 1.0)[0])


@pytest.mark.parametrize(
    ("largest", "dtype", "scale"),
    [
        (255, "uint8", 1 / 255),
        (1, "uint8", 1 / 255),
        (255.0, "f8", 1 / 255),
        (1.0, "float32", 1.0),
        (1.2, "f4", 1),
    ],
)
def test_brightness_of_floats_may_be_scaled_already(tmp_path: Path, largest: float, dtype: str, scale: float) -> None:
    values = np.linspace(0, largest, 32).reshape(2, 16).astype(dtype)
    assert brightness_scale(ArrayFile(saved(tmp_path, values))) == scale


def test_a_file_without_rows_has_a_scale(tmp_path: Path) -> None:
    assert brightness_scale(ArrayFile(saved(tmp_path, np.zeros((0, 16))))) == 1 / 255
    assert rows_not_finite(ArrayFile(saved(tmp_path, np.zeros((0, 16))))).size == 0


def test_a_file_is_mapped_and_travels_as_a_path(tmp_path: Path) -> None:
    file = ArrayFile(saved(tmp_path, np.ones((1_000, 28, 28))))
    assert isinstance(file.array, np.memmap)
    packed = pickle.dumps(Pictures(file, 28, range(1_000), 1.0))
    assert len(packed) < 1_000
    assert torch.equal(pickle.loads(packed)[999], torch.ones(1, 28, 28))


@pytest.mark.parametrize("shape", [(5, 9), (5, 3, 4), (5,), (5, 4, 4, 1), (5, 5, 5)])
def test_pictures_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    file = ArrayFile(saved(tmp_path, counting(*shape)))
    with pytest.raises(RecipeError, match=r"data\.npy should have shape \(N, 16\) or \(N, 4, 4\)\. Found"):
        Pictures(file, 4, [0], 1.0)


def test_the_size_that_would_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="pictures of 7 x 7"):
        Pictures(ArrayFile(saved(tmp_path, counting(5, 49))), 4, [0], 1.0)


def test_values_that_are_not_finite_are_found_and_refused(tmp_path: Path) -> None:
    values = np.ones((2_500, 4))
    values[[3, 1_000, 2_499], [0, 3, 1]] = [np.nan, np.inf, -np.inf]
    file = ArrayFile(saved(tmp_path, values))
    assert rows_not_finite(file).tolist() == [3, 1_000, 2_499]
    with pytest.raises(RecipeError, match=r"data\.npy should hold finite values.* row 1,000: .*--skip-bad"):
        Pictures(file, 2, [0, 1_000], 1.0)[1]
    assert rows_not_finite(ArrayFile(saved(tmp_path, counting(5, 4)))).size == 0


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.npy should be a complete npy file.*No such file"):
        ArrayFile(tmp_path / "nowhere.npy")


@pytest.mark.parametrize("kept", [5, 60, 128, 600])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    path = saved(tmp_path, counting(100, 16))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RecipeError, match=r"complete npy file.*unpack or download it again"):
        ArrayFile(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.npy").touch()
    with pytest.raises(RecipeError, match=r"complete npy file.*Found an empty file: download it again"):
        ArrayFile(tmp_path / "data.npy")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    path.write_text("<html>quota exceeded</html>" * 10)
    with pytest.raises(RecipeError, match="complete npy file"):
        ArrayFile(path)
    np.savez(tmp_path / "data.npz", data=np.zeros(3))
    (tmp_path / "data.npz").rename(path)
    with pytest.raises(RecipeError, match="complete npy file"):
        ArrayFile(path)


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_refused_without_being_run(tmp_path: Path) -> None:
    array = np.empty(3, object)
    array[:] = [Harmful(tmp_path / "harm")] * 3
    path = saved(tmp_path, array)
    with pytest.raises(RecipeError, match="array of Python objects is a pickle"):
        ArrayFile(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("array", [np.array(["a", "b"]), np.array([1j, 2]), np.array(3.0), np.array([True])])
def test_arrays_of_something_other_than_numbers_are_refused(tmp_path: Path, array: NDArray[Any]) -> None:
    with pytest.raises(RecipeError, match="integers or floats, samples first"):
        ArrayFile(saved(tmp_path, array))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float64"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_class_indices_of_every_type(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    labels = read_class_indices(saved(tmp_path, np.array([3, 0, 9, 3], dtype).reshape(shape)), 10)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [3, 0, 9, 3]


@pytest.mark.parametrize("value", [10, -1, 2.5, float("nan"), 255])
def test_class_indices_out_of_range_are_refused(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path, np.array([0, 9, value, value]))
    with pytest.raises(RecipeError, match=r"data\.npy should .* from 0 to 9\. Found \S+ in row 2, and 1 more"):
        read_class_indices(path, 10)


def test_one_hot_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"shape \(N,\).*Found \(4, 10\)"):
        read_class_indices(saved(tmp_path, np.zeros((4, 10))), 10)
