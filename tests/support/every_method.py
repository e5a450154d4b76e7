"""Every built-in method, by entry point, with options with which it acts within a few steps."""

from __future__ import annotations

from typing import Any

from contract.test_conformance import BUILT_IN, OPTIONS
from modbalance._plugins import load_method
from modbalance.testing._case import Case

__all__ = ["BUILT_IN", "case_of"]


def case_of(name: str, **options: Any) -> Case:
    """Return trainings with a method."""
    return Case(load_method(name), {**OPTIONS[name][0], **options})
