"""Folder of one run: its files, and the check that it belongs to this run."""

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

from modbalance.runs import CONFIG, CONFIG_ENTRIES, METRICS, RESULT, RESULT_ENTRIES, RunFolderError, read_entries
from recipe_common.errors import RecipeError
from recipe_common.files import PARTIAL, atomic_file, room_for

LOCK = ".lock"
LOG = "log.txt"
SEED = "seed-"
"""Prefix of the folders of several seeds."""
_FIX = "restore that file, or train anew with `--overwrite`"
_LIBRARIES = ("torch", "torchvision", "torchaudio", "scikit-learn", "modbalance")


def _as_read_from_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(settings))
    return content


@attrs.frozen
class RunFolder:
    """Paths and contents of the files of one run.

    Attributes:
        path: The folder, ``OUTPUT/METHOD``.
        recipe: Name of the recipe.
        settings: The settings that identify the run, as values for JSON.
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
        """State from which training continues."""
        return self.path / "last.pt"

    @property
    def result(self) -> Path:
        """Scores and history; exists once the run is finished."""
        return self.path / RESULT

    @property
    def config(self) -> Path:
        """Settings and versions."""
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.path / METRICS

    @property
    def events(self) -> Path:
        """TensorBoard events."""
        return self.path / "events"

    @property
    def curves(self) -> Path:
        """Picture of the run."""
        return self.path / "curves.png"

    def check(self, *, resume: bool, overwrite: bool, update: bool = False) -> bool:
        """Check that the run may use the folder. Changes nothing.

        Returns:
            Whether the content of the folder is to be deleted.

        Raises:
            RecipeError: If the folder holds another run, or this one and no argument is true; if its ``config.json`` is
                damaged and not to be deleted.
        """
        if not self._files():
            return False
        if not self.config.is_file():
            raise RecipeError(
                f"{self.path} should be empty or the folder of a run",
                found="files, but no config.json",
                fix="choose another `--output`",
            )
        if overwrite:
            return True
        differences = self._differences(self.read_config() or {})
        if update and differences:
            return True
        if differences:
            raise RecipeError(
                f"{self.path} should hold a run with these settings",
                found=f"others ({'; '.join(differences)})",
                fix="choose another `--output`, the old settings, `--update` to train runs of other settings anew, or "
                "`--overwrite` to train all anew",
            )
        if not resume and not update:
            raise RecipeError(
                f"{self.path} should hold no run",
                found="this one already",
                fix="write `--resume` to continue it (a finished run is only shown), or `--overwrite` to delete it",
            )
        return False

    def clear(self) -> None:
        """Delete the files of a run in the folder.

        If the process is killed meanwhile, the rest is still the folder of a run, as ``config.json`` is deleted last,
        and of an unfinished one without a saved state, as these are deleted first. Folders of seeds belong to runs of
        their own and stay.
        """
        if not self.config.exists():
            return
        order = {self.result: 0, self.last: 1, self.config: 3}
        for path in sorted(self._files(), key=lambda path: order.get(path, 2)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _files(self) -> list[Path]:
        """Return the files of the run, without those of the present process and partial ones of killed processes."""
        if not self.path.exists():
            return []
        found = [path for path in self.path.iterdir() if path.name not in (LOCK, LOG)]
        return [path for path in found if not path.name.endswith(PARTIAL) and not _is_seed(path)]

    def claim(self, run_settings: Mapping[str, Any]) -> None:
        """Mark the folder as that of this run, unfinished."""
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
        """Return the number of epochs that the run has been trained for.

        Raises:
            RecipeError: If ``metrics.csv`` is damaged.
        """
        if not self.metrics.is_file():
            return 0
        try:
            with self.metrics.open(newline="", encoding="utf-8") as file:
                return sum(1 for _ in csv.DictReader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise RecipeError(
                f"{self.metrics} should be a table", found=f"that it cannot be read ({error})", fix=_FIX
            ) from error

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        write_text(self.result, json.dumps(result, indent=2))

    def read_config(self) -> dict[str, Any] | None:
        """Return the settings and versions that `claim` wrote, or None if there is no file.

        Raises:
            RecipeError: If the file is damaged.
        """
        return _read(self.config, CONFIG_ENTRIES)

    def write_log(self, text: str) -> None:
        """Write the log of a failed run."""
        # The run has failed already: that its log cannot be written must not hide why.
        with suppress(OSError), atomic_file(self.path / LOG) as partial:
            partial.write_text(text, encoding="utf-8")

    def read_result(self) -> dict[str, Any] | None:
        """Return the content of `write_result`, or None if the run is not finished.

        Raises:
            RecipeError: If the file is damaged.
        """
        return _read(self.result, RESULT_ENTRIES)

    def _differences(self, config: Mapping[str, Any]) -> list[str]:
        old = {"recipe": config.get("recipe"), **config.get("settings", {})}
        new = {"recipe": self.recipe, **self.settings}
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return [f"{name} was {old.get(name)!r}, now {new.get(name)!r}" for name in names]


def _read(path: Path, parts: Mapping[str, type]) -> dict[str, Any] | None:
    """Return the content of a JSON file with the entries ``parts``; None if there is no file."""
    try:
        return read_entries(path, parts)
    except RunFolderError as error:
        raise RecipeError(error.should, found=error.found, fix=_FIX) from error


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
