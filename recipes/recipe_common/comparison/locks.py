"""One process at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from recipe_common.errors import RecipeError
from recipe_common.files import lock, room_for
from recipe_common.report.folder import LOCK


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``; a process that is killed gives its lock back.

    Raises:
        RecipeError: If another process is at work there, or nothing can be written there.
    """
    with _opened(folder) as handle:
        if not lock(handle, wait=False):
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise RecipeError(
                f"Expected {folder} to be free. Found another process at work in it (process {owner}). "
                "Fix: wait for it, stop it, or choose another `--output`."
            )
        with room_for(folder):
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n")
            handle.flush()
        _held.add(handle)
        try:
            yield
        finally:
            _held.discard(handle)


def _opened(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK).open("a+")
    except OSError as error:
        raise RecipeError(
            f"Expected a folder to write into at {folder}. Found: {error.strerror}. Fix: another `--output`."
        ) from error


_held: set[IO[str]] = set()
"""Locks of this process."""


def _let_go() -> None:
    """Close what a forked process has from its parent; a data worker would keep the lock of a parent that is gone."""
    for handle in _held:
        handle.close()
    _held.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)
