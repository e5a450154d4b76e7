"""A recipe that is killed with -9 at random moments, and started again each time, ends as if it had not been."""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modbalance.testing._case import different
from modbalance.testing._processes import PRELOADED
from recipe_common.cli import main
from recipe_common.training.trainer import Trainer
from recipes.tiny_recipe import RECIPE
from recipes.without_pictures import without_pictures

pytestmark = pytest.mark.slow

METHODS = ("agm", "cggm", "inforeg", "lfm", "mmpareto", "mslr", "pmr", "relearning")
"""Methods with state of their own: averages, probes, heads, weights of earlier epochs."""
OPTIONS = ("lfm.alpha=learned", "mslr.memory=1", "relearning.period=1", "relearning.offset=-1")
FLAGS = ("--option", *OPTIONS, "--epochs", "2", "--save-every", "2", "--resume")
CLOCKS = ("seconds", "seconds_per_step", "waiting")
KILLS = 10


def train(output: Path, death: tuple[str, float] | None) -> None:
    """Start the recipe, which dies after a number of steps, or right before a file gets its name."""
    torch.set_num_threads(1)
    if death is not None:
        die_at(output, *death)
    with without_pictures():
        code = main(RECIPE, ["--methods", *METHODS, *FLAGS, "--output", str(output)])
    sys.exit(code)


def die_at(output: Path, kind: str, number: float) -> None:
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).startswith(str(output)):
            count()

    if kind == "file":
        sys.addaudithook(audit)
    elif kind == "step":
        Trainer._after_step = counted(Trainer._after_step, count)  # type: ignore[assignment, method-assign]


def counted(after_step: Callable[[Trainer], None], count: Callable[[], None]) -> Callable[[Trainer], None]:
    def counting(trainer: Trainer) -> None:
        after_step(trainer)
        count()

    return counting


def deaths() -> list[tuple[str, float]]:
    """Return how each start ends but the last one: at a step, at a file, or after some seconds."""
    chosen = random.Random(13)
    kinds = ("step", "file", "step", "file", "step", "file", "time")
    found = [(kinds[index % len(kinds)], chosen.randint(3, 12)) for index in range(KILLS)]
    return [(kind, number / 20 if kind == "time" else number) for kind, number in found]


def start(output: Path, death: tuple[str, float] | None) -> int:
    """Run the recipe in a process of its own and return how it ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "sklearn.cluster", "recipe_common.cli"])
    process = context.Process(target=train, args=(output, death))
    process.start()
    process.join(death[1] if death is not None and death[0] == "time" else 100)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def results(output: Path) -> dict[str, Any]:
    """Return what a comparison leaves, without times."""
    found: dict[str, Any] = {"comparison": rows(output / "comparison.csv")}
    for name in METHODS:
        found[name] = {
            "metrics": rows(output / name / "metrics.csv"),
            "result": json.loads((output / name / "result.json").read_text()),
            **{part: torch.load(output / name / f"{part}.pt", weights_only=True) for part in ("best", "last")},
        }
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def test_killed_starts_end_with_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    codes = [start(tmp_path / "killed", death) for death in deaths()]
    assert codes == [-signal.SIGKILL] * KILLS
    assert start(tmp_path / "killed", None) == 0
    assert start(tmp_path / "whole", None) == 0
    killed, whole = results(tmp_path / "killed"), results(tmp_path / "whole")
    paths = different(killed, whole)
    weights = [whole[name]["last"]["model"] for name in METHODS]
    assert all(different(one, other) for one, other in itertools.combinations(weights, 2)), "all methods should act"
    assert [path for path in paths if path.rsplit("/", 1)[-1] not in CLOCKS] == []
