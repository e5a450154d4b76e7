"""The folder of one run: which run it belongs to, and the files in it."""

from __future__ import annotations

import csv
import io
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs

from recipe_common.errors import RecipeError
from recipe_common.files import PARTIAL, atomic_file, room_for

LOCK = ".lock"
LOG = "log.txt"
SEED = "seed-"
"""How the folders of several seeds begin."""
_CONFIG = {"recipe": str, "settings": dict, "run": dict, "versions": dict}
_RESULT = {"method": str, "seed": int, "best": dict, "test": dict, "history": list}
"""What there is at least in the files of this name."""
_FIX = "Fix: restore that file, or train anew with `--overwrite`."
_LIBRARIES = ("torch", "torchvision", "torchaudio", "scikit-learn", "modbalance")


def _as_read_from_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(settings))
    return content


@attrs.frozen
class RunFolder:
    """Names and writes the files of one run.

    Attributes:
        path: The folder, ``OUTPUT/METHOD``.
        recipe: Name of the recipe.
        settings: The settings that make the run this run and no other, ready for JSON.
    """

    path: Path
    recipe: str
    settings: dict[str, Any] = attrs.field(converter=_as_read_from_json)

    @property
    def best(self) -> Path:
        """Weights of the best epoch."""
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        """All that is needed to go on."""
        return self.path / "last.pt"

    @property
    def result(self) -> Path:
        """What came out; there once the run is finished."""
        return self.path / "result.json"

    @property
    def config(self) -> Path:
        """Settings and versions."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.path / "metrics.csv"

    @property
    def events(self) -> Path:
        """TensorBoard events."""
        return self.path / "events"

    @property
    def curves(self) -> Path:
        """Picture of the run."""
        return self.path / "curves.png"

    def check(self, *, resume: bool, overwrite: bool, update: bool = False) -> bool:
        """Refuse a folder that this run must not touch. Changes nothing.

        Returns:
            Whether what is in the folder is to be thrown away.

        Raises:
            RecipeError: If the folder holds another run, or this one and nobody said what to do with it; if its
                ``config.json`` is damaged and not to be thrown away.
        """
        if not self._files():
            return False
        if not self.config.is_file():
            raise RecipeError(
                f"Expected {self.path} to be empty or the folder of a run. Found files, but no config.json. "
                "Fix: another `--output`."
            )
        if overwrite:
            return True
        differences = self._differences(self.read_config() or {})
        if update and differences:
            return True
        if differences:
            raise RecipeError(
                f"Expected {self.path} to hold a run with these settings. Found others: {'; '.join(differences)}. "
                "Fix: another `--output`, the old settings, `--update` to train runs of other settings anew, or "
                "`--overwrite` to train all anew."
            )
        if not resume and not update:
            raise RecipeError(
                f"Expected no run in {self.path}. Found this one already. Fix: `--resume` to go on with it (a finished "
                "run is only shown), or `--overwrite` to throw it away."
            )
        return False

    def clear(self) -> None:
        """Throw away what a run left in the folder.

        After a kill the rest is still a run's folder, as ``config.json`` goes last, and an unfinished one without a
        state to go on from, as these go first. Folders of seeds are runs of their own and stay.
        """
        if not self.config.exists():
            return
        order = {self.result: 0, self.last: 1, self.config: 3}
        for path in sorted(self._files(), key=lambda path: order.get(path, 2)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _files(self) -> list[Path]:
        """Return what this run left: no files of the process at work, none that a kill left half written."""
        if not self.path.exists():
            return []
        found = [path for path in self.path.iterdir() if path.name not in (LOCK, LOG)]
        return [path for path in found if not path.name.endswith(PARTIAL) and not _is_seed(path)]

    def claim(self, run_settings: Mapping[str, Any]) -> None:
        """Make the folder that of this run, unfinished."""
        self.result.unlink(missing_ok=True)
        config = {
            "recipe": self.recipe,
            "settings": self.settings,
            "run": dict(run_settings),
            "versions": {"python": platform.python_version(), **_versions()},
        }
        write_text(self.config, json.dumps(config, indent=2))

    def write_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write ``metrics.csv``: one row per epoch, counted from 1; a cell is empty where nothing was measured."""
        columns = list(dict.fromkeys(name for row in history for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(self.metrics, text.getvalue())

    def epochs_done(self) -> int:
        """Return how many epochs the run has behind it.

        Raises:
            RecipeError: If the file that tells is damaged.
        """
        if not self.metrics.is_file():
            return 0
        try:
            with self.metrics.open(newline="", encoding="utf-8") as file:
                return sum(1 for _ in csv.DictReader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise RecipeError(
                f"Expected a table in {self.metrics}. Found that it cannot be read: {error}. {_FIX}"
            ) from error

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        write_text(self.result, json.dumps(result, indent=2))

    def read_config(self) -> dict[str, Any] | None:
        """Return what `claim` wrote: settings and versions.

        Raises:
            RecipeError: If the file is damaged.
        """
        return _read(self.config, _CONFIG)

    def write_log(self, text: str) -> None:
        """Keep what a person may want to know of a failed run."""
        # The run has failed already: that its log cannot be written must not hide why.
        with suppress(OSError), atomic_file(self.path / LOG) as partial:
            partial.write_text(text, encoding="utf-8")

    def read_result(self) -> dict[str, Any] | None:
        """Return what `write_result` wrote, or None if the run is not finished.

        Raises:
            RecipeError: If the file is damaged.
        """
        return _read(self.result, _RESULT)

    def _differences(self, config: Mapping[str, Any]) -> list[str]:
        old = {"recipe": config.get("recipe"), **config.get("settings", {})}
        new = {"recipe": self.recipe, **self.settings}
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return [f"{name} was {old.get(name)!r}, now {new.get(name)!r}" for name in names]


def _read(path: Path, parts: Mapping[str, type]) -> dict[str, Any] | None:
    """Return what is in a file of JSON, which has all parts; None if there is no file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"Expected JSON in {path}. Found that it cannot be read: {error}. {_FIX}") from error
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    if missing := [name for name, kind in parts.items() if not isinstance(found.get(name), kind)]:
        raise RecipeError(f"Expected {', '.join(parts)} in {path}. Found it without {', '.join(missing)}. {_FIX}")
    return found


def _is_seed(path: Path) -> bool:
    return path.is_dir() and path.name.startswith(SEED)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        RecipeError: If the disk is full.
    """
    with room_for(path), atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
