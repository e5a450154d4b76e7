"""One process at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recipe_common.errors import RecipeError
from recipe_common.files import room_for
from recipe_common.report.folder import LOCK


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``.

    A process that is killed gives its lock back, and the processes that it has forked do not hold it. Nobody is kept
    out on file systems without locks.

    Raises:
        RecipeError: If another process is at work there, or nothing can be written there.
    """
    path = folder / LOCK
    _make(path)
    lock = FileLock(path, timeout=0, preserve_lock_file=True, fallback_to_soft=False, on_acquired=_write_owner)
    with _without_locks(path), room_for(folder):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _without_locks(path: Path) -> Iterator[None]:
    """Go on where the file system has no locks, but not where another process has this one."""
    try:
        yield
    except Timeout as error:
        raise RecipeError(
            f"Expected {path.parent} to be free. Found another process at work in it (process {_owner(path)}). "
            "Fix: wait for it, stop it, or choose another `--output`."
        ) from error
    except OSError:
        return


def _make(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise RecipeError(
            f"Expected a folder to write into at {path.parent}. Found: {error.strerror}. Fix: another `--output`."
        ) from error


def _write_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())


def _owner(path: Path) -> str:
    try:
        return path.read_text().strip() or "unknown"
    except OSError:  # on Windows a locked file cannot be read
        return "unknown"
