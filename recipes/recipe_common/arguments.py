"""Bounds of numbers in flags and settings. A number out of bounds ends in a message of argparse, not in a traceback."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import attrs

_MOST_SEED = 2**32 - 1
"""scikit-learn takes no greater one."""
_MOST_THREADS = 1024
"""Far more cannot be started on any machine, and end the process."""


@attrs.frozen
class Number:
    """Bounds of a number; called with a text, it is a type of argparse.

    Attributes:
        parse: ``int`` or ``float``.
        accepts: Whether a number is within the bounds.
        what: The words for such a number.
    """

    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]
    what: str

    def __call__(self, text: str) -> Any:
        """Return the number that a text stands for."""
        try:
            value = self.parse(text)
        except ValueError:
            value = None
        if value is None or not self.accepts(value):
            raise argparse.ArgumentTypeError(f"Expected {self.what}. Found `{text}`. Fix: give such a number.")
        return value


positive_int = Number(int, lambda value: value >= 1, "a whole number of at least 1")
non_negative_int = Number(int, lambda value: value >= 0, "a whole number of at least 0")
seed_int = Number(int, lambda value: 0 <= value <= _MOST_SEED, f"a whole number from 0 to {_MOST_SEED}")
thread_count = Number(int, lambda value: 1 <= value <= _MOST_THREADS, f"a whole number from 1 to {_MOST_THREADS}")
positive_float = Number(float, lambda value: 0 < value < math.inf, "a finite number above 0")
non_negative_float = Number(float, lambda value: 0 <= value < math.inf, "a finite number of at least 0")
share_float = Number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
factor_float = Number(float, lambda value: 0 < value <= 1, "a number above 0, at most 1")
