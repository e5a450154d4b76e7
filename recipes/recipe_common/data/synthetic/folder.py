"""Folders of the small synthetic sets that recipes write."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from recipe_common.files import atomic_folder, lock

CACHE = Path(__file__).parents[3] / "data"
LOCK = ".lock"


def synthetic_folder(name: str, key: object, write: Callable[[Path], None], cache: Path = CACHE) -> Path:
    """Return the folder of a synthetic set, making it at the first call; another process that wants it waits.

    The set appears in one step, so that a kill leaves nothing half-made.

    Args:
        name: Of the recipe.
        key: All that the files depend on, such as an attrs record or a tuple; its repr names the folder. Holds a
            version, to be raised when the files change for another reason than the settings.
        write: Writes the set into an empty folder.
        cache: Where synthetic sets are kept.
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
