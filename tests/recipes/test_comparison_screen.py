"""The screen of a comparison on a terminal."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from recipe_common.comparison.screen import LiveScreen
from recipe_common.report.results import Failure, Result, Run
from recipe_common.report.view import Columns
from recipe_common.tasks.task import classification

COLUMNS = Columns(("audio", "visual"), "val", classification(3))
RUNS = [Run(method, seed) for seed in (0, 1) for method in ("none", "ogm")]


def row(epoch: int, accuracy: float) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": accuracy}


def result(run: Run) -> Result:
    return Result(run.method, run.seed, row(2, 0.75), {"test_accuracy": 0.5}, [row(1, 0.25), row(2, 0.75)])


def screen(runs: list[Run] = RUNS, height: int = 40) -> LiveScreen:
    return LiveScreen(Console(file=io.StringIO(), width=140, height=height, force_terminal=True), COLUMNS, runs)


def shown(live: LiveScreen) -> list[str]:
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(live.render())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_every_run_has_a_line() -> None:
    live = screen()
    view = live.view(RUNS[0])
    view.start("none", epochs=3, num_steps=4, step=0, history=[row(1, 0.6)])
    view.step_done()
    view.loss_read(0.1234)
    lines = shown(live)
    assert len(lines) == 1 + len(RUNS) + 1
    assert re.search(r"^none +0 .* 1/3 +60\.0% +\S+ .*loss 0\.1234$", lines[1])
    assert lines[-1].startswith("0 of 4 runs done, 1 running; ")
    view.epoch_done(row(2, 0.9))
    assert " 2/3 " in shown(live)[1]
    assert "90.0%" in shown(live)[1]


def test_a_run_that_ended_says_how() -> None:
    live = screen()
    live.finished(RUNS[0], result(RUNS[0]))
    live.finished(RUNS[1], Failure("ogm", 0, "the loss became [nan]"))
    lines = shown(live)
    assert "test top-1 50.0%" in lines[1]
    assert " 2/2 " in lines[1], "an earlier call finished it"
    assert "75.0%" in lines[1]
    assert lines[2].endswith("FAILED: the loss became [nan]")
    assert lines[-1].startswith("1 of 4 runs done, 0 running, 1 failed; ")


def test_time_left_counts_only_what_this_call_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    live = screen()
    for run in RUNS[:3]:
        live.finished(run, result(run))
    view = live.view(RUNS[3])
    view.start("ogm", epochs=2, num_steps=10, step=0, history=[])
    now = 160.0
    for _ in range(10):
        view.step_done()
    assert shown(live)[-1].endswith("1:00 passed, 1:00 left")
    live.finished(RUNS[3], Failure("ogm", 1, "killed"))
    assert shown(live)[-1].endswith("1:00 passed, 0.0 s left")


def test_many_runs_are_cut_to_the_height_of_the_terminal() -> None:
    runs = [Run("none", seed) for seed in range(60)]
    live = screen(runs, height=24)
    for run in runs[:20]:
        live.finished(run, result(run))
    live.view(runs[20]).start("none", epochs=2, num_steps=1, step=0, history=[])
    lines = shown(live)
    assert len(lines) <= 24 - 10
    assert any(re.match(r"none +20 ", line) for line in lines)
    assert lines[-1].startswith("20 of 60 runs done, 1 running")
