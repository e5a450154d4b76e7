"""A run that was interrupted anywhere ends exactly like one that was not."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe_common.cli import main
from recipe_common.errors import require
from recipe_common.training import run, trainer
from recipe_common.training.checkpoint import save
from recipe_common.training.interrupt import StopRequest
from recipes.tiny_recipe import RECIPE
from recipes.two_step_training import StopAtLook
from recipes.without_pictures import without_pictures

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# The trainer asks after each step and after each validation batch: 6 steps and 3 batches per epoch.
CLOCKS = ("seconds", "waiting")
MIDDLE_OF_FIRST_EPOCH, AFTER_LAST_STEP, IN_EVALUATION, LATER_EPOCH = 2, 6, 8, 13


def _train(output: Path, *flags: str, monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> int:
    @contextmanager
    def stop() -> Iterator[StopRequest]:
        yield StopAtLook(stop_at)

    with monkeypatch.context() as patch:
        patch.setattr(run, "stop_on_signal", stop)
        return main(RECIPE, ["--methods", "ogm_ge", "--output", str(output), *flags])


def _rows(output: Path) -> list[dict[str, str]]:
    with (output / "ogm_ge" / "metrics.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


def _assert_equal(found: Any, expected: Any, where: str = "state") -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            if key not in CLOCKS:
                _assert_equal(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            _assert_equal(one, other, f"{where}[{index}]")
    else:
        assert found == expected, where


def _assert_same_run(found: Path, expected: Path) -> None:
    assert _rows(found) == _rows(expected)
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(output / "ogm_ge" / name, weights_only=True) for output in (found, expected))
        _assert_equal(one, other, where=name)


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Leave out what takes most of the time and has its own tests."""
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert main(RECIPE, ["--methods", "ogm_ge", "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize("look", [MIDDLE_OF_FIRST_EPOCH, AFTER_LAST_STEP, IN_EVALUATION, LATER_EPOCH])
def test_interrupted_and_resumed_is_bitwise_the_whole_run(
    look: int, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _train(tmp_path, monkeypatch=monkeypatch, stop_at=look) == 130
    assert _train(tmp_path, "--resume", monkeypatch=monkeypatch) == 0
    _assert_same_run(tmp_path, uninterrupted)


def test_workers_change_nothing(uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _train(tmp_path, "--workers", "2", monkeypatch=monkeypatch, stop_at=LATER_EPOCH) == 130
    assert _train(tmp_path, "--workers", "1", "--resume", monkeypatch=monkeypatch) == 0
    _assert_same_run(tmp_path, uninterrupted)


def test_interrupted_twice_with_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--accumulate", "4", "--clip-grad-norm", "0.5", "--epochs", "2", "--step-size", "1"]
    assert _train(tmp_path / "whole", *flags, monkeypatch=monkeypatch) == 0
    assert _train(tmp_path / "parts", *flags, monkeypatch=monkeypatch, stop_at=1) == 130
    assert _train(tmp_path / "parts", *flags, "--resume", monkeypatch=monkeypatch, stop_at=1) == 130
    assert _train(tmp_path / "parts", *flags, "--resume", monkeypatch=monkeypatch) == 0
    _assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_going_on_for_more_epochs_equals_a_longer_run(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _train(tmp_path, "--epochs", "1", monkeypatch=monkeypatch) == 0
    assert _train(tmp_path, "--epochs", "3", "--resume", monkeypatch=monkeypatch) == 0
    _assert_same_run(tmp_path, uninterrupted)


def test_save_every_leaves_a_checkpoint_inside_the_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class CrashAtLook(StopAtLook):
        def __bool__(self) -> bool:
            if super().__bool__():
                raise RuntimeError("power cut")
            return False

    @contextmanager
    def crash() -> Iterator[StopRequest]:
        yield CrashAtLook(5)

    monkeypatch.setattr(run, "stop_on_signal", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        main(RECIPE, ["--methods", "none", "--save-every", "4", "--output", str(tmp_path)])
    state = torch.load(tmp_path / "none" / "last.pt", weights_only=True)
    assert (state["sampler"]["epoch"], state["sampler"]["offset"]) == (0, 4)


KILLED = """
import os, sys
from recipe_common.cli import main
from recipe_common.training.trainer import Trainer
from recipes.tiny_recipe import RECIPE

after_step = Trainer._after_step

def die_after_step(trainer):
    after_step(trainer)
    if trainer.step == int(sys.argv[1]):
        trainer.events._writer.flush()
        os._exit(9)

Trainer._after_step = die_after_step
main(RECIPE, sys.argv[2:])
"""


def _events(output: Path, tag: str) -> list[int]:
    module = require("tensorboard.backend.event_processing.event_accumulator")
    accumulator = module.EventAccumulator(str(output / "ogm_ge" / "events"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(tag)]


@pytest.mark.parametrize("step", [5, 6, 9])
def test_a_killed_run_has_each_of_its_events_once(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--methods", "ogm_ge", "--output", str(tmp_path), "--epochs", "2"]
    path = os.pathsep.join(str(ROOT / name) for name in ("recipes", "tests", "."))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(step), *flags], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == 9
    assert _train(tmp_path, "--epochs", "2", "--resume", monkeypatch=monkeypatch) == 0
    assert _events(tmp_path, "train/running_loss") == [2, 4, 6, 8, 10, 12]
    assert _events(tmp_path, "epoch/val_loss") == [6, 12]


def test_a_checkpoint_has_the_events_before_it_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def look(state: dict[str, Any], path: Path) -> None:
        save(state, path)
        if path.name == "last.pt":
            written.append(_events(tmp_path, "train/running_loss"))

    monkeypatch.setattr(trainer, "save", look)
    assert _train(tmp_path, "--epochs", "1", "--save-every", "4", monkeypatch=monkeypatch) == 0
    assert written == [[2, 4], [2, 4, 6]]
