"""Fixtures of the unit tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.plugin_distributions import Add, install


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Install made-up distributions for one test; each call puts a folder of its own on the path."""
    before = set(sys.modules)

    def install_one(distribution: str, source: str, entries: dict[str, str] | None = None) -> None:
        folder = install(tmp_path / f"{len(list(tmp_path.iterdir()))}-{distribution}", distribution, source, entries)
        monkeypatch.syspath_prepend(folder)

    yield install_one
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
