"""Damaged files: one error for whatever a decoder raises, and checks of what would keep it busy without bound."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from tokenize import TokenError
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from recipe_common.data.readers import unbounded
from recipe_common.data.readers.decoding import decoding, open_npy
from recipe_common.data.readers.pickled_arrays import ARRAY, Array, Dtype, from_buffer, new_array, scalar
from recipe_common.data.readers.pickles import load_pickle
from recipe_common.data.readers.unbounded import check_heaps, check_memo
from recipe_common.data.samples.audiovisual import hdf5_frames
from recipe_common.errors import RecipeError


def named(found: str) -> RecipeError:
    return RecipeError("a.h5 should be whole", found=found, fix="restore it")


@pytest.mark.parametrize(
    "fault", [OSError, KeyError, RuntimeError, TokenError, SyntaxError, MemoryError, RecursionError]
)
def test_whatever_a_decoder_raises_is_one_error(fault: type[Exception]) -> None:
    with pytest.raises(RecipeError, match=r"^a\.h5 should be whole\. Found .*odd") as caught, decoding(named):
        raise fault("odd")
    assert isinstance(caught.value.__cause__, fault)


def test_an_error_is_one_short_line() -> None:
    with pytest.raises(RecipeError) as caught, decoding(named):
        raise OSError("x" * 500 + "\nsecond line")
    assert caught.value.found == "x" * 200
    with pytest.raises(RecipeError, match="Found ValueError:"), decoding(named):
        raise ValueError


def test_errors_of_recipes_and_interrupts_pass() -> None:
    with pytest.raises(RecipeError, match=r"^other$"), decoding(named):
        raise RecipeError("other")
    with pytest.raises(KeyboardInterrupt), decoding(named):
        raise KeyboardInterrupt


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'shape': (3,", b"{'descr': '<f4'}", b"print()"])
def test_a_damaged_header_of_npy_is_named(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(RecipeError, match=r"a\.h5 should be whole"):
        open_npy(path, named)


def test_a_damaged_shape_of_npy_takes_no_memory(tmp_path: Path) -> None:
    path, content = tmp_path / "a.npy", io.BytesIO()
    np.save(content, np.zeros((7, 3), np.float32))
    path.write_bytes(content.getvalue().replace(b"(7, 3), }        ", b"(7, 300000000), }"))
    with pytest.raises(RecipeError, match="Found mmap length is greater than file"):
        open_npy(path, named)


def heap(*objects: tuple[int, int, bytes]) -> bytes:
    """Return a global heap alone, which is no HDF5 file, of objects: number, size and content with its padding."""
    parts = [
        number.to_bytes(2, "little") + bytes(6) + size.to_bytes(8, "little") + content
        for number, size, content in objects
    ]
    body = b"".join(parts)
    return unbounded.HEAP + (16 + len(body)).to_bytes(8, "little") + body


def test_heaps_that_lead_to_their_end_pass(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (
        b"",
        b"no heap",
        heap(),
        heap((1, 5, bytes(8)), (2, 8, bytes(8)), (0, 32, bytes(16))),
        b"before" + heap((1, 3, b"GCOL\0\0\0\0")) * 2,
        heap((0, 1 << 40, b"")),
        heap((1, 16, bytes(16)))[:30],
    ):
        path.write_bytes(content)
        check_heaps(path)


def test_a_heap_with_an_object_without_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(heap((1, 8, bytes(8))) + heap((1, 5, bytes(8)), (0, 0, bytes(16))))
    with pytest.raises(ValueError, match="a global heap with an object without size at byte 80"):
        check_heaps(path)


def test_lengths_beyond_the_file_are_refused_before_they_are_allocated(tmp_path: Path) -> None:
    path, frame = tmp_path / "a.hdf5", io.BytesIO()
    Image.new("RGB", (4, 4)).save(frame, "JPEG")
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("video", 2, h5py.vlen_dtype(np.uint8))
        for index in range(2):
            frames[index] = np.frombuffer(frame.getvalue(), np.uint8)
        file.flush()
        place = frames.id.get_offset()
    assert len(hdf5_frames(path)) == 2
    content = bytearray(path.read_bytes())
    content[place + 16 : place + 20] = (100_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"a\.hdf5 should be .* Found 100,000 bytes in a file of "):
        hdf5_frames(path)


@pytest.mark.parametrize("protocol", range(6))
def test_the_parts_of_a_pickle_are_counted_as_python_does(tmp_path: Path, protocol: int) -> None:
    content = [
        {"a": [1, 2.5, None, "é" * 300, b"y" * 300, 10**40, (1,), {2}]},
        np.ones((40, 3)),
        "q" * 70_000,
        ["x"] * 999,
    ]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    check_memo(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecipeError, match="end too early"):
        load_pickle(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r" + (70_000).to_bytes(4, "little") + b".",
        b"]p70000\n.",
        b"\x80\x04\x8e" + (1_000).to_bytes(8, "little") + b"short.",
    ],
)
def test_numbers_and_lengths_beyond_a_pickle_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(pickle.UnpicklingError):
        check_memo(path)
    with pytest.raises(RecipeError, match="should be a whole pickle file"):
        load_pickle(path)


DTYPES = ["f4", ">i2", "?", "c16", "S5", "<U3", ">U2", "O", "V7", [("a", "i4"), ("b", ">f8", (2,)), ("c", "S2")]]


@pytest.mark.parametrize("code", DTYPES, ids=str)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_all_kinds_come_back_whole(tmp_path: Path, code: Any, protocol: int) -> None:
    array = np.zeros((2, 3), code)
    if code in ("f4", ">i2", "c16"):
        array[:] = np.arange(6).reshape(2, 3)
    path = tmp_path / "a.pkl"
    for made in (array, np.asfortranarray(array), array[:, ::2], array.T):
        path.write_bytes(pickle.dumps({"x": made}, protocol))
        found = load_pickle(path)["x"]
        assert found.dtype == pickle.loads(path.read_bytes())["x"].dtype
        np.testing.assert_array_equal(found, made)


def test_arrays_go_on_to_other_processes_and_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([np.arange(6.0).reshape(2, 3)], 4))
    (found,) = load_pickle(path)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)), found)
    assert torch.from_numpy(found).sum() == 15
    assert type(np.asarray(found)) is np.ndarray
    found[0, 0] = 1


def dtype(code: str = "f4") -> Dtype:
    made = Dtype(code)
    made.__setstate__((3, "<", None, None, None, -1, -1, 0))
    return made


@pytest.mark.parametrize("code", ["M8[s]", "m8", "no such", 4, None])
def test_codes_of_no_array_are_refused(code: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Dtype(code)


@pytest.mark.parametrize(
    "state",
    [
        None,
        (3, "<"),
        (3, "!", None, None, None, -1, -1, 0),
        (3, "<", (dtype(), (-1,)), None, None, -1, -1, 0),
        (3, "<", (dtype(), 2), None, None, -1, -1, 0),
        (3, "|", None, ("a",), {"a": (dtype(), 4)}, 4, 1, 16),
        (3, "|", None, ("a",), {"a": ("f4", 0)}, 4, 1, 16),
        (3, "|", None, ("a",), {}, 4, 1, 16),
    ],
)
def test_damaged_states_of_dtypes_are_refused(state: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Dtype("V4").__setstate__(state)


@pytest.mark.parametrize(
    "state",
    [
        None,
        (1, (2,)),
        (1, (2,), "f4", False, bytes(8)),
        (1, 2, dtype(), False, bytes(8)),
        (1, (-2,), dtype(), False, bytes(8)),
        (1, (2.0,), dtype(), False, bytes(8)),
        (1, (3,), dtype(), False, bytes(8)),
        (1, (1 << 40,), dtype(), False, bytes(8)),
        (1, (2,), dtype(), False, [1, 2]),
        (1, (2,), dtype("O"), False, bytes(16)),
        (1, (2,), dtype("O"), False, [None]),
    ],
)
def test_damaged_states_of_arrays_are_refused(state: Any) -> None:
    array = new_array(ARRAY, (0,), b"b")
    assert isinstance(array, Array)
    with pytest.raises(ValueError, match=r"array|shape|dtype"):
        array.__setstate__(state)


def test_damaged_scalars_buffers_and_classes_are_refused() -> None:
    assert scalar(dtype(), np.float32(1.5).tobytes()) == np.float32(1.5)
    np.testing.assert_array_equal(from_buffer(bytes(8), dtype(), (1, 2), "F"), np.zeros((1, 2)))
    for content in (bytes(3), [1.5], None):
        with pytest.raises(ValueError, match="with another amount of content"):
            scalar(dtype(), content)
    with pytest.raises(ValueError, match="with another amount of content"):
        scalar(dtype("O"), bytes(8))
    for shape in ((3,), (-1,), 2):
        with pytest.raises(ValueError, match="shape"):
            from_buffer(bytes(8), dtype(), shape, "C")
    with pytest.raises(ValueError, match="the dtype"):
        from_buffer(bytes(8), "f4", (2,), "C")
    with pytest.raises(ValueError, match="an array of the class"):
        new_array(list, (0,), b"b")
