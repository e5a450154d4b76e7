"""Builds NumPy arrays from the parts that a pickle has of them, through constructors that check these parts.

NumPy (2.4) restores an array or a dtype from whatever state a pickle gives it; damaged states crash the process.
"""

import math
from typing import Any

import numpy as np

KINDS = "?biufcSUOV"
"""Kinds of dtypes that are built: all but dates, whose units are in a state of their own."""
ARRAY = "numpy.ndarray"
"""Stands for the class of arrays where a pickle names it."""


class Dtype:
    """A dtype of a pickle, `value`; pickles construct it by its code, and complete it by its state.

    Args:
        code: Code such as `f4`.
        align: Not used, as the offsets of fields are in the state.
        copy: Not used.

    Raises:
        ValueError: If the code is that of no array of numbers, texts, bytes, objects or named fields.
    """

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        self.value = np.dtype(code) if isinstance(code, str) else _refused(f"a dtype {code!r}")
        if self.value.kind not in KINDS:
            _refused(f"a dtype {code!r}")

    def __setstate__(self, state: Any) -> None:
        """Take byte order, shape, fields and size from the state that NumPy writes.

        Raises:
            ValueError: If they are inconsistent.
        """
        if not isinstance(state, tuple) or len(state) < 8:
            _refused("a dtype of another form")
        _, order, subarray, names, fields, size, *_ = state
        if fields is not None:
            self.value = _structured(names, fields, size)
        elif subarray is not None:
            base, shape = subarray
            self.value = np.dtype((_value(base), _shape(shape)))
        elif self.value.kind in "SUV":
            self.value = np.dtype(f"{self.value.kind}{int(size) // (4 if self.value.kind == 'U' else 1)}")
        if order not in ("<", ">", "|", "="):
            _refused(f"the byte order {order!r}")
        if fields is None and subarray is None and order in "<>":
            self.value = self.value.newbyteorder(order)


class Array(np.ndarray):
    """An array of a pickle, empty until it gets its state."""

    def __setstate__(self, state: Any) -> None:
        """Take shape, dtype and content from the state that NumPy writes.

        Raises:
            ValueError: If they do not fit together.
        """
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            _refused("an array of another form")
        shape, dtype, is_fortran, content = state[-4:]
        shape, value = _shape(shape), _value(dtype)
        if isinstance(content, str):
            content = content.encode("latin1")
        wanted, size = (list, 1) if value.hasobject else (bytes, value.itemsize)
        if not isinstance(content, wanted) or len(content) != math.prod(shape) * size:
            _refused(f"an array of shape {shape} and type {value} with another amount of content")
        checked: Any = (1, shape, value, bool(is_fortran), content)
        super().__setstate__(checked)


def new_array(kind: Any, shape: Any, code: Any) -> Array:
    """Return an array that waits for its state, as `numpy.core.multiarray._reconstruct` does."""
    if kind is not ARRAY:
        _refused(f"an array of the class {kind!r}")
    return np.ndarray.__new__(Array, (0,), np.int8)


def scalar(dtype: Any, content: Any = b"") -> Any:
    """Return a NumPy scalar, as `numpy.core.multiarray.scalar` does."""
    value = _value(dtype)
    if isinstance(content, str):
        content = content.encode("latin1")
    if value.hasobject or not isinstance(content, bytes) or len(content) != value.itemsize:
        _refused(f"a number of the type {value} with another amount of content")
    return np.zeros((), value)[()] if not content else np.frombuffer(content, value)[0]


def from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    """Return the array of a buffer of protocol 5, as `numpy.core.numeric._frombuffer` does."""
    array = np.frombuffer(buffer, dtype=_value(dtype))
    if order == "K" and axes is not None:
        return array.reshape(_shape(shape)).transpose(axes)
    return array.reshape(_shape(shape), order=order)


def _structured(names: Any, fields: Any, size: Any) -> np.dtype[Any]:
    parts = [fields[name] for name in names]
    return np.dtype(
        {
            "names": list(names),
            "formats": [_value(part[0]) for part in parts],
            "offsets": [int(part[1]) for part in parts],
            "itemsize": int(size),
        }
    )


def _value(dtype: Any) -> np.dtype[Any]:
    if isinstance(dtype, Dtype):
        return dtype.value
    # Arrays that this module has built are pickled again with true dtypes, on their way to another process.
    return dtype if isinstance(dtype, np.dtype) else _refused(f"the dtype {dtype!r}")


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
        _refused(f"the shape {shape!r}")
    return shape


def _refused(found: str) -> Any:
    raise ValueError(found)
