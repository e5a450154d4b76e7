"""Folders of synthetic sets, written once and shared by all runs."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from recipe_common.files import atomic_folder, lock

LOCK = ".lock"


def default_cache(scripts: Path) -> Path:
    """Return `data` beside the scripts of a checkout; the user's cache where an installed package has them.

    Its folder may not be writable, and its removal would leave the data behind.
    """
    if scripts.name == "recipes":
        return scripts / "data"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modbalance"


CACHE = default_cache(Path(__file__).parents[3])


def synthetic_folder(name: str, key: object, write: Callable[[Path], None], cache: Path = CACHE) -> Path:
    """Return the folder of a synthetic set, writing it at the first call while other processes wait.

    The set appears in one step, so that a kill leaves nothing half-made.

    Args:
        name: Name of the recipe.
        key: Settings on which the files depend, such as an attrs record or a tuple; the folder is named by a digest of
            its repr. It holds a version, raised when the files change for another reason.
        write: Writes the set into an empty folder.
        cache: Folder of all synthetic sets.
    """
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    folder = cache / name / digest
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / LOCK).open("a") as handle:
        lock(handle, wait=True)
        if not folder.is_dir():
            with atomic_folder(folder) as partial:
                write(partial)
    return folder
