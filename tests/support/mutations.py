"""Damaged copies of small files, by a seed: changed bytes and numbers, lost, repeated and foreign parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Numbers at the bounds of their types, which stand in sizes and counts of damaged headers."""
HEADER = 200
"""Bytes at the start of a file that are damaged more often than others."""


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged copies of a file, each with one to three kinds of damage."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(int(random.integers(1, 4))):
            if damaged:
                DAMAGES[int(random.integers(len(DAMAGES)))](damaged, random)
        yield bytes(damaged)


def _place(content: bytearray, random: np.random.Generator) -> int:
    """Draw a place, every second time from the header."""
    end = min(HEADER, len(content)) if random.random() < 0.5 else len(content)
    return int(random.integers(end))


def _bytes(content: bytearray, random: np.random.Generator) -> None:
    for _ in range(int(random.integers(1, 9))):
        content[_place(content, random)] = int(random.integers(256))


def _bit(content: bytearray, random: np.random.Generator) -> None:
    content[_place(content, random)] ^= 1 << int(random.integers(8))


def _number(content: bytearray, random: np.random.Generator) -> None:
    place, size = _place(content, random), int(random.choice([1, 2, 4, 8]))
    value = int(random.choice(EXTREMES)) % (1 << (8 * size))
    order = "little" if random.random() < 0.5 else "big"
    content[place : place + size] = value.to_bytes(size, order)[: len(content) - place]  # type: ignore[arg-type]


def _cut(content: bytearray, random: np.random.Generator) -> None:
    del content[_place(content, random) :]


def _lost(content: bytearray, random: np.random.Generator) -> None:
    place = _place(content, random)
    del content[place : place + int(random.integers(1, 65))]


def _zeros(content: bytearray, random: np.random.Generator) -> None:
    place, size = _place(content, random), int(random.integers(1, 513))
    content[place : place + size] = bytes(len(content[place : place + size]))


def _repeated(content: bytearray, random: np.random.Generator) -> None:
    start, place = _place(content, random), _place(content, random)
    content[place:place] = content[start : start + int(random.integers(1, 65))]


def _copied(content: bytearray, random: np.random.Generator) -> None:
    start, place, size = _place(content, random), _place(content, random), int(random.integers(1, 9))
    part = content[start : start + size]
    content[place : place + len(part)] = part


def _foreign(content: bytearray, random: np.random.Generator) -> None:
    place = _place(content, random)
    content[place:place] = random.bytes(int(random.integers(1, 33)))


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    *(_bytes, _bytes, _bit, _number, _number),
    *(_cut, _lost, _zeros, _repeated, _copied, _copied, _foreign),
)
