"""Types of flags: numbers within bounds. What is out of bounds ends in a message of argparse, not in a traceback."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", int, float)

_MOST_SEED = 2**32 - 1
"""scikit-learn takes no greater one."""
_MOST_THREADS = 1024
"""Far more cannot be started on any machine, and end the process."""


def _number(parse: Callable[[str], T], accepts: Callable[[T], bool], what: str) -> Callable[[str], T]:
    def number(text: str) -> T:
        try:
            value = parse(text)
        except ValueError:
            value = None
        if value is None or not accepts(value):
            raise argparse.ArgumentTypeError(f"Expected {what}. Found `{text}`. Fix: give such a number.")
        return value

    return number


positive_int = _number(int, lambda value: value >= 1, "a whole number of at least 1")
non_negative_int = _number(int, lambda value: value >= 0, "a whole number of at least 0")
seed_int = _number(int, lambda value: 0 <= value <= _MOST_SEED, f"a whole number from 0 to {_MOST_SEED}")
thread_count = _number(int, lambda value: 1 <= value <= _MOST_THREADS, f"a whole number from 1 to {_MOST_THREADS}")
positive_float = _number(float, lambda value: 0 < value < math.inf, "a finite number above 0")
non_negative_float = _number(float, lambda value: 0 <= value < math.inf, "a finite number of at least 0")
share_float = _number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
factor_float = _number(float, lambda value: 0 < value <= 1, "a number above 0, at most 1")
