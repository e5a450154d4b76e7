"""Reader of pickle files that cannot run code: arrays and plain containers only."""

import pickle
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from recipe_common.data.readers.decoding import decoding
from recipe_common.data.readers.non_files import check_file
from recipe_common.data.readers.pickled_arrays import ARRAY, Array, Dtype, from_buffer, new_array, scalar
from recipe_common.data.readers.unbounded import check_memo
from recipe_common.errors import RecipeError
from recipe_common.files import listing

_BUILTINS = (set, frozenset, bytearray, bytes, str, int, float, complex, bool, list, tuple, dict, slice, range)
_OTHER_FORMATS = (
    (b"<", "markup, such as an error page", "download the file itself"),
    (b"\x1f\x8b", "gzip data", "gunzip it first"),
    (b"PK\x03\x04", "a zip archive, or a file of torch.save", "unpack it first, or download the pickle file"),
    (b"\x89HDF", "an HDF5 file", "download the pickle file"),
    (b"\x93NUMPY", "a NumPy npy file", "download the pickle file"),
)


def load_pickle(path: Path) -> Any:
    """Read a pickle file of arrays and plain containers.

    An ordinary pickle may run any code when it is opened, and these files come from other people's drives. This reader
    admits only NumPy arrays and scalars (of NumPy 1 and 2), built-in containers, numbers, bytes and strings, and
    refuses any other name before it is imported. It does not bound the memory that a file needs, but for numbers of
    objects, of which a damaged one would fill it. Protocol 2 files of Python 2 are read as latin-1: their byte strings
    become `str`, one character per byte.

    Args:
        path: The file.

    Raises:
        RecipeError: If the file is missing, is something else (a web page, a git-lfs pointer, an archive), is cut off,
            or imports anything that such data do not need.
    """
    if not path.is_file():
        raise RecipeError(
            f"{path.parent} should hold the pickle file {path.name}",
            found=listing(path.parent),
            fix="put the file there, or point `--data-root` to it",
        )
    check_file(path, f"{path} should be a pickle file")
    with path.open("rb") as file:
        _check_format(path, file)
        with decoding(partial(_damaged, path)):
            check_memo(path)
            content = _DataUnpickler(file, path).load()
    return content.view(np.ndarray) if isinstance(content, Array) else content


def _damaged(path: Path, found: str) -> RecipeError:
    return RecipeError(
        f"{path} should be a whole pickle file",
        found=f"{path.stat().st_size:,} bytes that end too early or are damaged ({found})",
        fix="download it again and compare its size",
    )


def _check_format(path: Path, file: BinaryIO) -> None:
    start = file.read(64)
    file.seek(0)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, found, fix in _OTHER_FORMATS:
        if text.startswith(magic):
            raise RecipeError(f"{path} should be a pickle file", found=found, fix=fix)


class _DataUnpickler(pickle.Unpickler):
    """Admits the names of `_admitted` and no others."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path
        self._admitted = _admitted()

    def find_class(self, module: str, name: str) -> Any:
        """Return the object of an admitted name; raise a RecipeError for any other name."""
        found = self._admitted.get((module, name))
        if found is None:
            raise RecipeError(
                f"{self._path} should be a pickle of NumPy arrays and plain containers",
                found=f"`{' '.join(f'{module}.{name}'.split())}`, which may run code",
                fix="if you trust its origin, open it yourself and save it again as arrays, lists and dicts",
            )
        return found

    def persistent_load(self, identity: Any) -> Any:
        """Refuse references to objects outside the file."""
        raise RecipeError(
            f"{self._path} should be a pickle of NumPy arrays and plain containers",
            found="a reference to an object outside of it, as files of torch.save have",
            fix="save its arrays as a plain pickle",
        )


def _admitted() -> dict[tuple[str, str], Any]:
    """Map names to objects, so that nothing is imported by a name from a file."""
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): ARRAY,
        ("numpy", "dtype"): partial(Dtype),  # not the class, whose attributes a pickle could change
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): defaultdict,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):  # before and from NumPy 2 on
        names[f"{core}.multiarray", "_reconstruct"] = new_array
        names[f"{core}.multiarray", "scalar"] = scalar
        names[f"{core}.numeric", "_frombuffer"] = from_buffer
    python_2 = {"unicode": str, "long": int, "xrange": range}
    names |= {("__builtin__", name): kind for name, kind in python_2.items()}
    return names | {(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _BUILTINS}


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return the bytes of a string of protocol 2; any other codec is refused."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"codec {encoding}")
    return text.encode("latin1")
