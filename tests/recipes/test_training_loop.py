"""The trainer does what a plain loop does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from recipe_common.data.samples.sampler import ResumableBatchSampler
from recipe_common.report.folder import RunFolder
from recipe_common.report.view import Columns, PlainView
from recipe_common.training import sums, work
from recipe_common.training import trainer as trainer_module
from recipe_common.training.checkpoint import load
from recipe_common.training.interrupt import Interrupted, StopRequest
from recipe_common.training.job import build_job, check_methods
from recipe_common.training.precision import set_up
from recipe_common.training.trainer import Trainer
from recipes.call import settings_of
from recipes.tiny_recipe import RECIPE, TinyDataset, TinyNet
from recipes.two_step_training import StopAtLook


def _trainer(folder: Path, *flags: str, method: str = "none", **options: object) -> Trainer:
    settings = settings_of(RECIPE, "--device", "cpu", *flags)
    job = build_job(RECIPE, settings, RECIPE.load(settings), set_up(settings.machine), method, options)
    run_folder = RunFolder(folder, "tiny", {})
    run_folder.claim({})
    return Trainer(job, run_folder, PlainView(Console(quiet=True), Columns(job.evaluator.modalities, "val", job.task)))


def _plain_loop(epochs: int) -> Mapping[str, Tensor]:
    torch.manual_seed(0)
    model = TinyNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    sampler = ResumableBatchSampler(22, 4, seed=0, shuffle=True)
    torch.manual_seed(0)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for audio, visual, target in DataLoader(TinyDataset(22), batch_sampler=sampler, generator=torch.Generator()):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(audio, visual), target).backward()
            optimizer.step()
        scheduler.step()
    return model.state_dict()


def test_method_none_is_bitwise_a_plain_loop(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, "--epochs", "2", "--step-size", "1")
    trainer.fit(StopRequest())
    expected = _plain_loop(epochs=2)
    for name, tensor in trainer.job.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_every_method_starts_from_the_same_weights(tmp_path: Path) -> None:
    one = _trainer(tmp_path / "a").job.model.state_dict()
    other = _trainer(tmp_path / "b", method="ogm_ge").job.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [([], 6), (["--limit-batches", "3"], 3), (["--accumulate", "4"], 2), (["--limit-batches", "1"], 1)],
)
def test_steps_per_epoch(flags: list[str], steps: int, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, "--epochs", "1", *flags)
    taken = []
    trainer.job.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    trainer.fit(StopRequest())
    assert trainer.num_steps == steps
    assert len(taken) == steps


class CountReads(TorchDispatchMode):
    """Counts the reads of a tensor by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_from_the_device(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, method="ogm_ge")
    batches = list(trainer.job.loaders.train)
    trainer._step([batches[0]])  # the first one may look, to learn the shape of the head
    with CountReads() as counter:
        trainer._step([batches[1]])
    assert counter.reads == 0


def test_history_has_a_row_per_epoch_with_all_scores(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, "--epochs", "2", method="ogm_ge")
    trainer.fit(StopRequest())
    assert [row["epoch"] for row in trainer.history] == [1, 2]
    assert {"val_accuracy", "val_macro_f1", "val_map", "val_accuracy_visual"} <= trainer.history[0].keys()
    assert 0 < trainer.history[0]["coefficient_audio"] <= 1


def test_best_weights_are_those_that_were_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(tmp_path, "--epochs", "1")
    evaluated = {}

    def edit_weights(**_: object) -> None:  # what a method may do between epochs
        evaluated.update({name: tensor.clone() for name, tensor in trainer.job.model.state_dict().items()})
        nn.init.zeros_(trainer.job.model.get_parameter("head.linear.weight"))

    monkeypatch.setattr(trainer.job.optimizer, "end_epoch", edit_weights)
    trainer.fit(StopRequest())
    best = load(trainer.folder.best)["model"]
    assert all(torch.equal(best[name], evaluated[name]) for name in evaluated)


def test_coefficients_are_those_of_the_epoch_only(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, "--epochs", "2", method="ogm_ge", end_epoch=0)
    trainer.fit(StopRequest())
    assert trainer.history[0]["coefficient_audio"] < 1
    assert trainer.history[1].get("coefficient_audio", 1.0) == 1.0


@pytest.mark.parametrize("flags", [["--amp", "bf16"], ["--channels-last"]])
def test_machine_flags_train(flags: list[str], tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, "--epochs", "1", *flags, method="ogm_ge")
    trainer.fit(StopRequest())
    assert trainer.history[0]["train_loss"] > 0


def test_wrong_option_of_the_second_method_fails_before_training() -> None:
    settings = settings_of(RECIPE, "--methods", "none", "ogm_ge")
    options: dict[str, dict[str, float]] = {"none": {}, "ogm_ge": {"alpha": -1.0}}
    with pytest.raises(ValueError, match="alpha"):
        check_methods(RECIPE, settings, RECIPE.load(settings), set_up(settings.machine), options)


class Clock:
    """What the sums and the trainer take for the time: that of the machine, and what somebody adds to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.added = 0.0
        for module in (sums, work):
            monkeypatch.setattr(module, "time", self)

    def perf_counter(self) -> float:
        return time.perf_counter() + self.added

    def delays(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, which takes 1,000 seconds more from now on."""

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.added += 1000
            return function(*args, **kwargs)

        return slow


def test_seconds_are_those_of_steps_and_not_of_checkpoints_or_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    run = _trainer(tmp_path, "--epochs", "2", "--save-every", "2")
    for name in ("save", "EventLog"):
        monkeypatch.setattr(trainer_module, name, clock.delays(getattr(trainer_module, name)))
    run.fit(StopRequest())
    assert clock.added > 8000
    assert all(0 < row["waiting"] < row["seconds"] < 1000 for row in run.history)


def test_seconds_before_and_after_an_interruption_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    run = _trainer(tmp_path, "--epochs", "1")
    monkeypatch.setattr(run, "_step", clock.delays(run._step))
    with pytest.raises(Interrupted):
        run.fit(StopAtLook(2))
    resumed = _trainer(tmp_path, "--epochs", "1")
    resumed.restore(load(resumed.folder.last))
    monkeypatch.setattr(resumed, "_step", clock.delays(resumed._step))
    clock.added += 1e6
    resumed.fit(StopRequest())
    assert 6000 < resumed.history[0]["seconds"] < 7000
