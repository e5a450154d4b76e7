"""Folders of runs, as the recipes write them and other trainings may: what is read from them.

A run is a folder with

- ``config.json``: ``{"recipe": str, "settings": {"method": str, "seed": int, ...}, "run": {...}, "versions": {...}}``;
- ``metrics.csv``: one row per epoch, its number in the column ``epoch`` from 1 on; other columns are numbers or empty;
- ``result.json``, once the run is finished: ``{"method": str, "seed": int, "best": {...}, "test": {...},
  "history": [...]}`` with a number for each ``test_...`` score.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from modbalance.errors import ModbalanceError

__all__ = [
    "CONFIG",
    "CONFIG_ENTRIES",
    "METRICS",
    "RESULT",
    "RESULT_ENTRIES",
    "RunFolderError",
    "SavedRun",
    "find_runs",
    "read_entries",
]

CONFIG, METRICS, RESULT = "config.json", "metrics.csv", "result.json"
CONFIG_ENTRIES: dict[str, type] = {"recipe": str, "settings": dict, "run": dict, "versions": dict}
RESULT_ENTRIES: dict[str, type] = {"method": str, "seed": int, "best": dict, "test": dict, "history": list}
_DEPTH = 3


class RunFolderError(ModbalanceError):
    """A run folder does not hold what it should.

    Attributes:
        should: What should be.
        found: What was found.
    """

    def __init__(self, should: str, found: str, fix: str) -> None:
        super().__init__(f"{should}. Found {found}: {fix}.")
        self.should, self.found = should, found


@attrs.frozen
class SavedRun:
    """One run on disk.

    Attributes:
        path: Its folder.
        method: Name of the method; ``only:<modality>`` for a modality that is trained by itself.
        seed: Its seed.
        config: The content of ``config.json``.
    """

    path: Path
    method: str
    seed: int
    config: dict[str, Any] = attrs.field(repr=False, eq=False)

    def history(self) -> list[dict[str, float]]:
        """Return the rows of ``metrics.csv``, without empty cells; no rows if there is no file.

        Raises:
            RunFolderError: The file is damaged.
        """
        path = self.path / METRICS
        if not path.is_file():
            return []
        try:
            with path.open(newline="", encoding="utf-8") as file:
                return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise RunFolderError(
                f"{path} should be a table of numbers", f"that it cannot be read ({error})", "restore that file"
            ) from error

    def test_scores(self) -> dict[str, float] | None:
        """Return the scores on the test split, or None if the run is not finished.

        Raises:
            RunFolderError: ``result.json`` is damaged.
        """
        result = read_entries(self.path / RESULT, RESULT_ENTRIES)
        return None if result is None else result["test"]


def find_runs(paths: Sequence[Path]) -> list[SavedRun]:
    """Return the runs in folders: each is a run, or holds runs up to three levels below.

    Raises:
        RunFolderError: There is no such folder, it holds no run, or a ``config.json`` is damaged.
    """
    found: dict[Path, SavedRun] = {}
    for path in paths:
        if not path.is_dir():
            raise RunFolderError(f"{path} should be the folder of a run, or of runs", "no folder", "check the path")
        configs = sorted(_configs(path, _DEPTH))
        if not configs:
            raise RunFolderError(
                f"{path} should be the folder of a run, or of runs",
                f"no {CONFIG} in it",
                "give the `--output` of a training",
            )
        for config in configs:
            found.setdefault(config.parent.resolve(), _saved_run(config))
    return list(found.values())


def _configs(path: Path, depth: int) -> Iterator[Path]:
    if (path / CONFIG).is_file():
        yield path / CONFIG
    for below in path.iterdir() if depth else ():
        if below.is_dir():
            yield from _configs(below, depth - 1)


def _saved_run(config: Path) -> SavedRun:
    content = read_entries(config, CONFIG_ENTRIES)
    assert content is not None
    settings = content["settings"]
    return SavedRun(
        config.parent, str(settings.get("method", config.parent.name)), int(settings.get("seed") or 0), content
    )


def read_entries(path: Path, entries: Mapping[str, type]) -> dict[str, Any] | None:
    """Return the content of a JSON file with ``entries``, name and type; None if there is no file.

    Raises:
        RunFolderError: The file is damaged.
    """
    if not path.is_file():
        return None
    fix = "restore that file"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} should be JSON", f"that it cannot be read ({error})", fix) from error
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    if missing := [name for name, kind in entries.items() if not isinstance(found.get(name), kind)]:
        raise RunFolderError(
            f"{path} should have the entries {', '.join(entries)}", f"it without {', '.join(missing)}", fix
        )
    return found
