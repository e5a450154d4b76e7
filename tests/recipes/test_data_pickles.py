"""Pickles of data are read; pickles of code are refused before anything of it runs."""

import os
import pickle
import pickletools
import re
from collections import OrderedDict, defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipe_common.data.readers.pickles import load_pickle
from recipe_common.errors import RecipeError

# What Python 2 writes with protocol 2 for {"id": array(["a\xe9"], dtype="S2"), "names": ["a\xe9", u"b"],
# "x": array([1.5], dtype="<f4"), "set": {1}}: byte strings are SHORT_BINSTRING, modules have their old names.
PYTHON_2 = (
    b"\x80\x02}(U\x02idcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02S2K\x00K\x01\x87R(K\x03U\x01|NNNK\x02K\x01K\x00tb\x89U\x02a\xe9tb"
    b"U\x05names](U\x02a\xe9X\x01\x00\x00\x00beU\x01xcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    b"K\x00\x85U\x01b\x87R(K\x01K\x01\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
    b"J\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x00\xc0?tbU\x03setc__builtin__\nset\n]K\x01a\x85Ru."
)


class Attack:
    """Would make a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def save(folder: Path, content: bytes) -> Path:
    path = folder / "data.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_come_back(tmp_path: Path, protocol: int) -> None:
    counts: defaultdict[str, int] = defaultdict(int, a=1)
    content = {
        "float": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
        "text": np.array(["é", "b"]),
        "bytes": np.array([b"a", b"bc"]),
        "objects": np.array(["a", None, b"c"], dtype=object),
        "structured": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "scalar": np.float32(1.5),
        "plain": [1, 2.5, 10**30, 1j, b"\xff", b"", bytearray(b"x"), "é", {1}, frozenset({2}), (), None, True],
        "dicts": [OrderedDict(a=1), counts],
    }
    found = load_pickle(save(tmp_path, pickle.dumps(content, protocol)))
    assert list(found) == list(content)
    for name in ("float", "fortran", "text", "bytes", "objects", "structured", "empty", "scalar"):
        np.testing.assert_array_equal(found[name], content[name])
        assert found[name].dtype == content[name].dtype  # type: ignore[attr-defined]  # mypy joins the types of a dict
    assert found["plain"] == content["plain"]
    assert found["dicts"] == content["dicts"]


@pytest.mark.parametrize(("old", "new"), [(b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")])
@pytest.mark.parametrize("name", [b"multiarray\n_reconstruct", b"multiarray\nscalar"])
def test_files_of_numpy_1_and_2(tmp_path: Path, old: bytes, new: bytes, name: bytes) -> None:
    value = np.arange(3.0) if b"_reconstruct" in name else np.float64(2.5)
    content = pickle.dumps(value, 2).replace(old + name, new + name)
    np.testing.assert_array_equal(load_pickle(save(tmp_path, content)), value)


def test_files_of_python_2_are_latin_1(tmp_path: Path) -> None:
    assert [opcode.name for opcode, _, _ in pickletools.genops(PYTHON_2)].count("SHORT_BINSTRING") > 5
    found = load_pickle(save(tmp_path, PYTHON_2))
    assert found["id"].tolist() == [b"a\xe9"]
    assert found["names"] == ["a\xe9", "b"]
    assert found["x"].dtype == np.float32
    assert found["x"].tolist() == [1.5]
    assert found["set"] == {1}


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_refused_by_name_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    path = save(tmp_path, pickle.dumps({"x": [np.zeros(1), Attack(tmp_path / "made")]}, protocol))
    with pytest.raises(RecipeError, match=r"Found `(posix|nt).mkdir`, which may run code: if you trust"):
        load_pickle(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "named",
    [
        b"cos\nsystem\n.",
        b"c__builtin__\neval\n.",
        b"cbuiltins\ngetattr\n.",
        b"cbuiltins\n__import__\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"c_codecs\ndecode\n.",
        b"cno_such_module\nx\n.",
    ],
)
def test_other_names_of_admitted_modules_are_refused(tmp_path: Path, named: bytes) -> None:
    with pytest.raises(RecipeError, match="which may run code"):
        load_pickle(save(tmp_path, named))


def test_admitted_names_lead_nowhere_else(tmp_path: Path) -> None:
    nested = b"\x80\x04\x8c\x05numpy\x94\x8c\x0endarray.tofile\x94\x93."  # a dotted name of protocol 4
    with pytest.raises(RecipeError, match="which may run code"):
        load_pickle(save(tmp_path, nested))
    codec = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    with pytest.raises(RecipeError, match="codec rot13"):
        load_pickle(save(tmp_path, codec))
    with pytest.raises(RecipeError, match="fractions"):
        load_pickle(save(tmp_path, pickle.dumps(Fraction(1, 2))))


def test_references_out_of_the_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"as files of torch\.save have"):
        load_pickle(save(tmp_path, b"\x80\x02X\x01\x00\x00\x00aQ."))


@pytest.mark.parametrize("share", [0.0005, 0.1, 0.5, 0.9, 0.9999])
def test_half_a_download(tmp_path: Path, share: float) -> None:
    whole = pickle.dumps({"x": np.arange(5_000.0), "ids": [f"id {i}" for i in range(500)]})
    with pytest.raises(RecipeError, match=r"should be a whole pickle file.* end too early .* download it again"):
        load_pickle(save(tmp_path, whole[: int(len(whole) * share)]))


@pytest.mark.parametrize("position", range(0, 200, 7))
def test_damaged_bytes_never_leave_the_reader_as_another_error(tmp_path: Path, position: int) -> None:
    whole = bytearray(pickle.dumps({"x": np.arange(5.0), "ids": ["a", b"b"]}, 2))
    whole[position % len(whole)] ^= 0x5A
    try:
        load_pickle(save(tmp_path, bytes(whole)))
    except RecipeError as error:
        assert re.search("(?s)should be .* Found .*: ", str(error))  # noqa: PT017  some changed bytes are only other numbers


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>Google Drive - Virus scan warning", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a git-lfs pointer"),
        (b"\x1f\x8b\x08\x00", "gzip data"),
        (b"PK\x03\x04\x00", "a zip archive, or a file of torch.save"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x93NUMPY\x01\x00", "a NumPy npy file"),
        (b"just some words", "end too early or are damaged"),
    ],
)
def test_what_is_no_pickle_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    with pytest.raises(RecipeError, match=found):
        load_pickle(save(tmp_path, content))


def test_a_missing_file_says_what_is_there(tmp_path: Path) -> None:
    save(tmp_path, b"")
    with pytest.raises(RecipeError, match=r"should hold the pickle file other\.pkl\. Found data\.pkl"):
        load_pickle(tmp_path / "other.pkl")
    with pytest.raises(RecipeError, match="should hold the pickle file"):
        load_pickle(tmp_path)
