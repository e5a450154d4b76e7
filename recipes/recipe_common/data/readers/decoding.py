"""Decoding of files that may be damaged: whatever a library raises becomes one error that names the file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from recipe_common.errors import RecipeError

SHOWN = 200
"""Characters of a decoder's message that are shown: some quote the file."""


@contextmanager
def decoding(error: Callable[[str], Exception]) -> Iterator[None]:
    """Turn any error of a decoder into that of a reader.

    For damaged bytes libraries raise nearly every error there is: h5py RuntimeError and KeyError, Pillow SyntaxError
    and OverflowError, NumPy tokenize.TokenError, nibabel errors of its own. So the context should hold calls of the
    decoder alone; a RecipeError passes.

    Args:
        error: From the fault, one line, to the error that is raised.
    """
    try:
        yield
    except RecipeError:
        raise
    except Exception as fault:
        lines = str(fault).strip().splitlines()
        raise error(lines[0][:SHOWN] if lines else type(fault).__name__) from fault


def open_npy(path: Path, error: Callable[[str], Exception]) -> Any:
    """Return the array of a npy file as a memory map, so that a damaged shape takes no memory.

    Unlike numpy.load this has no way to unpickle: a pickle in a downloaded file can run any code.

    Args:
        path: The file.
        error: As in `decoding`.
    """
    with decoding(error):
        return np.lib.format.open_memmap(path, mode="r")
