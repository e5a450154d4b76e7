"""Runs a function of a test module on several ranks: one process each, joined by gloo."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modbalance.testing import _processes

PRELOADED = [
    *("sklearn.cluster", "sklearn.preprocessing", "pytest"),
    *("support.models", "support.training", "support.reference"),
]
"""Modules that the ranks of several tests import; Re-learning needs the clusters."""


def on_ranks(function: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """Return what ``function(rank, *arguments)`` returns on each rank: tensors, numbers, strings, and containers.

    Raises:
        RuntimeError: A rank failed or hung; the message holds the traceback of each that did.
    """
    source = Path(function.__code__.co_filename)
    return _processes.on_ranks(
        _call, source, function.__name__, arguments, ranks=ranks, preload=(*PRELOADED, "support.ranks")
    )


def _call(rank: int, source: Path, name: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_load(source), name)(rank, *arguments)


def _load(source: Path) -> Any:
    """Import the test module by its file: its name depends on how pytest was started."""
    spec = importlib.util.spec_from_file_location(source.stem, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[source.stem] = module
    spec.loader.exec_module(module)
    return module
