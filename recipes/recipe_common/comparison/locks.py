"""Lock of an output folder, so that one process at a time writes there."""

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
    """Lock ``folder`` while the context is open.

    The lock of a process that is killed is released, and the processes that it has forked do not hold it. File systems
    without locks keep no process out.

    Raises:
        RecipeError: If another process holds the lock, or nothing can be written there.
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
    """Ignore that a file system has no locks, but not that another process holds this one."""
    try:
        yield
    except Timeout as error:
        raise RecipeError(
            f"{path.parent} should be in use by one process",
            found=f"another one at work in it (process {_owner(path)})",
            fix="wait for it, stop it, or choose another `--output`",
        ) from error
    except OSError:
        return


def _make(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise RecipeError(
            f"{path.parent} should be a folder that can be written to",
            found=f"the error `{error.strerror}`",
            fix="choose another `--output`",
        ) from error


def _write_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())


def _owner(path: Path) -> str:
    try:
        return path.read_text().strip() or "unknown"
    except OSError:  # on Windows a locked file cannot be read
        return "unknown"
