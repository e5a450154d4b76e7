"""Where the recipes keep the small sets that they generate."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

CACHE = Path(__file__).parents[2] / "data"


def generated_folder(name: str, key: object, write: Callable[[Path], None], cache: Path = CACHE) -> Path:
    """Return the folder of a generated set, making it at the first call.

    The set appears in one step, by renaming a finished temporary folder, so that a kill leaves nothing half-made; what
    a killed call left is removed by the next one that makes the set.

    Args:
        name: Of the recipe.
        key: All that the files depend on, such as an attrs record or a tuple; its repr names the folder. Holds a
            version, to be raised when the files change for another reason than the settings.
        write: Writes the set into an empty folder.
        cache: Where generated sets are kept.
    """
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    folder = cache / name / digest
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent, digest)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{digest}-{os.getpid()}-", dir=folder.parent))
    try:
        write(partial)
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _remove_leftovers(folder: Path, digest: str) -> None:
    for partial in folder.glob(f".partial-{digest}-*"):
        if not _is_running(int(partial.name.split("-")[2])):
            shutil.rmtree(partial, ignore_errors=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
