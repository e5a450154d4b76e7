"""Bounds of numbers in flags and settings: types for argparse, whose errors have the three parts of `RecipeError`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import attrs

from recipe_common.errors import explained

_MOST_SEED = 2**32 - 1
"""Largest seed that scikit-learn accepts."""
_MOST_THREADS = 1024
"""A bound that no useful setting reaches; a process that cannot start its threads is aborted."""


def argument_error(should: str, *, found: str, fix: str) -> argparse.ArgumentTypeError:
    """Return the error for a value that is not valid; argparse puts the name of the flag in front of its message.

    Args:
        should: Requirement, as a sentence without its full stop.
        found: What was found instead.
        fix: What to do.
    """
    return argparse.ArgumentTypeError(explained(should, found, fix))


@attrs.frozen
class Number:
    """Bounds of a number; called with a text, it is a type of argparse.

    Attributes:
        parse: ``int`` or ``float``.
        accepts: Whether a number is within the bounds.
        words: Words for a number within the bounds, such as "a finite number above 0".
    """

    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]
    words: str

    def __call__(self, text: str) -> Any:
        """Return the number that a text stands for.

        Raises:
            argparse.ArgumentTypeError: If the text is no number, or the number is out of bounds.
        """
        try:
            value = self.parse(text)
        except ValueError:
            value = None
        if value is None or not self.accepts(value):
            raise argument_error(f"The value should be {self.words}", found=f"`{text}`", fix="give such a number")
        return value


positive_int = Number(int, lambda value: value >= 1, "a whole number of at least 1")
non_negative_int = Number(int, lambda value: value >= 0, "a whole number of at least 0")
seed_int = Number(int, lambda value: 0 <= value <= _MOST_SEED, f"a whole number from 0 to {_MOST_SEED}")
thread_count = Number(int, lambda value: 1 <= value <= _MOST_THREADS, f"a whole number from 1 to {_MOST_THREADS}")
positive_float = Number(float, lambda value: 0 < value < math.inf, "a finite number above 0")
non_negative_float = Number(float, lambda value: 0 <= value < math.inf, "a finite number of at least 0")
share_float = Number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
factor_float = Number(float, lambda value: 0 < value <= 1, "a number above 0, at most 1")
