"""Atomic writing of files and folders, checks of the room on the disk, listings of folders, locks between processes."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from recipe_common.errors import RecipeError

PARTIAL = ".partial"
"""Ending of the names of temporary files and folders."""
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".rar", ".7z"})
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` on success and removed on failure."""
    partial = _partial(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, renamed to `path` on success and removed on failure.

    Raises:
        OSError: On leaving, if there is a folder `path` that is not empty.
    """
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn the failure of a write to `path` on a full disk into an error with a remedy.

    Raises:
        RecipeError: If the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # Torch raises an error of its own while it handles that of the disk.
        if not any(isinstance(each, OSError) and each.errno in DISK_FULL for each in (error, error.__context__)):
            raise
        raise RecipeError(
            f"The disk should have room for {path}", found="none left", fix="make room and go on with `--resume`"
        ) from error


def check_room(folder: Path, size: float, content: str, fix: str) -> None:
    """Compare the bytes that will be written into a folder with those that are free on its disk.

    Args:
        folder: A folder that exists.
        size: Bytes that will be written, or an estimate.
        content: Name of the data in the message, such as `the cache`.
        fix: Remedy in the message.

    Raises:
        RecipeError: If fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise RecipeError(
            f"The disk of {folder} should have room for {content}, about {size / 1e9:,.1f} GB",
            found=f"{free / 1e9:,.1f} GB",
            fix=fix,
        )


def remove_partials(folder: Path) -> None:
    """Remove temporary files and folders that killed processes left behind."""
    for path in folder.glob(f".*{PARTIAL}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def listing(folder: Path, shown: int = 8) -> str:
    """Return the first names in a folder, or that there are none or that it is no folder, as text for messages."""
    if folder.is_file():
        is_archive = folder.suffix.lower() in ARCHIVES
        return "an archive that is not unpacked" if is_archive else "a file, which is no folder"
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "an empty folder") + more


def lock(handle: IO[Any], *, wait: bool) -> bool:
    """Lock an open file for this process, until it is closed or the process ends, however it ends.

    On file systems without locks, such as some network disks, every call succeeds.

    Args:
        handle: The file.
        wait: Whether to wait while another process has the lock.

    Returns:
        Whether this process may go on; False if another one has the lock and `wait` is False.
    """
    try:
        return lock_descriptor(handle.fileno(), blocking=wait)
    except OSError:
        return True


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")
