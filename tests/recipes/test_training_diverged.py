"""A training that has diverged fails, and no epoch without a score is the best one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from rich.console import Console
from torch import Tensor

from recipe_common.cli import main
from recipe_common.recipe import Data
from recipe_common.report.folder import RunFolder
from recipe_common.report.view import Columns, PlainView
from recipe_common.settings.shared import Settings
from recipe_common.training.checkpoint import load
from recipe_common.training.interrupt import StopRequest
from recipe_common.training.job import build_job
from recipe_common.training.precision import set_up
from recipe_common.training.trainer import RunFailed, Trainer
from recipes.call import settings_of
from recipes.tiny_recipe import RECIPE, TinyDataset
from recipes.without_pictures import without_pictures


class BrokenDataset(TinyDataset):
    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        audio, visual, label = super().__getitem__(key)
        return torch.full_like(audio, torch.nan), visual, label


def _load_with_broken_test(settings: Settings[Any]) -> Data:
    return attrs.evolve(RECIPE.load(settings), test=BrokenDataset(12))


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


@pytest.mark.parametrize("select", ["val", "test"])
def test_a_divergence_in_the_last_step_fails_the_run(
    select: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--lr", "1e38", "--limit-batches", "1", "--epochs", "1", "--select", select)
    assert main(RECIPE, ["--output", str(tmp_path), *flags]) == 1
    assert f"FAILED: none, seed 0: the {select} loss became nan in epoch 1" in capsys.readouterr().out
    assert not (tmp_path / "none" / "best.pt").exists()
    assert not (tmp_path / "none" / "result.json").exists()


def test_a_test_loss_that_is_not_finite_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = attrs.evolve(RECIPE, load=_load_with_broken_test)
    assert main(recipe, ["--output", str(tmp_path), "--epochs", "1"]) == 1
    assert "FAILED: none, seed 0: the test loss became nan with the weights of epoch 1" in capsys.readouterr().out
    assert not (tmp_path / "none" / "result.json").exists()


def _trainer_with_undefined_accuracy(
    folder: Path, undefined: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> Trainer:
    settings = settings_of(RECIPE, "--device", "cpu", "--epochs", "2")
    job = build_job(RECIPE, settings, RECIPE.load(settings), set_up(settings.machine), "none", {})
    columns = Columns(job.evaluator.modalities, "val", job.task)
    trainer = Trainer(job, RunFolder(folder, "tiny", {}), PlainView(Console(quiet=True), columns))
    evaluate = trainer._evaluate

    def evaluate_in_part() -> dict[str, float]:
        row = evaluate()
        return row | ({"val_accuracy": math.nan} if row["epoch"] in undefined else {})

    monkeypatch.setattr(trainer, "_evaluate", evaluate_in_part)
    return trainer


@pytest.mark.parametrize(("undefined", "best"), [((1,), 2), ((2,), 1)])
def test_an_epoch_without_a_score_is_never_the_best(
    undefined: tuple[int, ...], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer_with_undefined_accuracy(tmp_path, undefined, monkeypatch)
    trainer.fit(StopRequest())
    assert load(trainer.folder.best)["row"]["epoch"] == best
    assert len(trainer.history) == 2


def test_a_run_without_a_best_epoch_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer_with_undefined_accuracy(tmp_path, (1, 2), monkeypatch)
    with pytest.raises(RunFailed, match="the val top-1 is a number in no epoch"):
        trainer.fit(StopRequest())
