"""Comparison of saved states with recorded ones."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from compat.scenarios import ARITHMETIC, arithmetic

CLOCKS = ("seconds", "waiting")
LATER = {"begun", "paths", "inner_states"}
"""Keys of a state that were added since the recording, and say what the others hold; one side may lack them."""
TOLERANCE = 2e-6
"""Largest error, absolute and relative, where the machine rounds otherwise; some ten times what was found on such."""


@functools.cache
def is_machine_of_recording() -> bool:
    """Whether torch alone computes bitwise as where the data were recorded, and the trainings have to, too."""
    recorded = torch.load(ARITHMETIC, weights_only=True)
    found = arithmetic()
    return found.keys() == recorded.keys() and all(torch.equal(found[name], recorded[name]) for name in found)


def assert_as_recorded(found: Any, recorded: Any, where: str = "state", *, reordered: bool = False) -> None:
    """Assert that a state is bitwise the recorded one; to `TOLERANCE` on machines that round otherwise.

    Args:
        found: The state.
        recorded: The recorded one.
        where: Its name in messages.
        reordered: Whether sums run in another order than in the code that was recorded, which rounds otherwise, too.
    """
    is_exact = is_machine_of_recording() and not reordered
    _assert_equal(found, recorded, where, 0.0 if is_exact else TOLERANCE)


def assert_equal(found: Any, expected: Any, where: str = "state") -> None:
    """Assert that two states have equal structure, types and values, bit for bit but for clocks."""
    _assert_equal(found, expected, where, 0.0)


def _assert_equal(found: Any, expected: Any, where: str, tolerance: float) -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() - LATER == expected.keys() - LATER, where
        for key in found.keys() & expected.keys() - set(CLOCKS):
            _assert_equal(found[key], expected[key], f"{where}.{key}", tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            _assert_equal(*pair, f"{where}[{index}]", tolerance)
    elif isinstance(expected, Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
        is_rounded = tolerance and expected.is_floating_point()
        assert torch.allclose(found, expected, tolerance, tolerance) if is_rounded else found.equal(expected), where
    elif isinstance(expected, float) and tolerance:
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert found == expected, where
