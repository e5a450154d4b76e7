"""Checks for damage with which a decoder would run, or take memory, without bound; before it is called."""

import mmap
import pickle
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HEAP = b"GCOL\x01\0\0\0"
"""Start of a global heap of HDF5, in which arrays of varying length are stored: signature, version, three zeros."""
HEAP_HEADER = 16
"""Bytes of the header of a heap, and of each of its objects."""
OPERATIONS = 1_000_000
"""Operations of a pickle that are looked at, about a second; arrays are one each."""


def check_heaps(path: Path) -> None:
    """Check that the objects of all global heaps in an HDF5 file lead to their end.

    HDF5 (2.0.0) steps from object to object by their sizes, for ever where an unused one has the size 0, as after a
    part of a file was lost and filled with zeros.

    Raises:
        ValueError: If one does.
        OSError: If the file cannot be opened.
    """
    with _mapped(path) as content:
        start = content.find(HEAP)
        while start >= 0:
            _check_heap(content, start)
            start = content.find(HEAP, start + 1)


def _check_heap(content: Any, start: int) -> None:
    end = min(start + _number(content, start + 8, 8), len(content))
    place = start + HEAP_HEADER
    while place + HEAP_HEADER <= end:
        index, size = _number(content, place, 2), _number(content, place + 8, 8)
        if index == 0 and size == 0:
            raise ValueError(f"a global heap with an object without size at byte {place:,}")
        place += HEAP_HEADER + (size + 7) // 8 * 8 if index else size


def _number(content: Any, place: int, size: int) -> int:
    return int.from_bytes(content[place : place + size], "little")


def check_lengths(path: Path, start: int, count: int) -> None:
    """Check the lengths of arrays of varying length in an HDF5 file, which allocates up to 4 GB for a damaged one.

    Args:
        path: The file.
        start: Place of their descriptors, of 4 bytes of length, 8 of place and 4 of number each.
        count: Number of arrays.

    Raises:
        ValueError: If one is longer than the file.
        OSError: If the file cannot be opened.
    """
    with _mapped(path) as content:
        for place in range(start, start + 16 * count, 16):
            if _number(content, place, 4) > len(content):
                raise ValueError(f"{_number(content, place, 4):,} bytes in a file of {len(content):,}")


def check_memo(path: Path) -> None:
    """Check that a pickle numbers its objects from 0 on, and that none is longer than the file.

    Python (3.11) fills a table up to the largest number: a damaged one of four bytes takes up to 64 GB.

    Raises:
        pickle.UnpicklingError: If a number exceeds its place in the file, or a part is longer than the file, among the
            first `OPERATIONS`.
        OSError: If the file cannot be opened.
    """
    with _mapped(path) as content:
        place = 0
        for _ in range(OPERATIONS):
            operation = _OPERATIONS.get(content[place]) if place < len(content) else None
            if operation is None or operation.name == "STOP":
                return  # damage of another kind is found by the unpickler
            end = _end(operation, content, place + 1)
            if end > len(content):
                raise pickle.UnpicklingError(f"a part that ends at byte {end:,}")
            if operation.name == "LONG_BINPUT" and _number(content, place + 1, 4) > place:
                raise pickle.UnpicklingError(f"an object with the number {_number(content, place + 1, 4):,}")
            if operation.name == "PUT" and len(content[place + 1 : end].strip().lstrip(b"0")) > len(str(place)):
                raise pickle.UnpicklingError("an object with too large a number")
            place = end


def _end(operation: pickletools.OpcodeInfo, content: Any, start: int) -> int:
    """Return the end of the argument of an operation."""
    argument = operation.arg
    if argument is None:
        return start
    if argument.n >= 0:
        return start + argument.n
    if argument.n == pickletools.UP_TO_NEWLINE:
        for _ in range(2 if operation.name in ("GLOBAL", "INST") else 1):
            found = content.find(b"\n", start)
            start = found + 1 if found >= 0 else len(content)
        return start
    size = _SIZES[argument.n]
    return start + size + _number(content, start, size)


_OPERATIONS = {ord(operation.code): operation for operation in pickletools.opcodes}
_SIZES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""Bytes of the length in front of an argument."""


@contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    """Map a file into memory; an empty one, which cannot be mapped, is no bytes."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content
