"""The Lightning callback: a training of Lightning equals the plain loop, clips and epochs included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning
from modbalance.lightning import BalanceCallback
from support.models import Multimodal
from support.stacks import CLIP, EPOCHS, METHODS, STEPS, loader, metrics_of, plain, wrapped
from support.training import assert_close, assert_same, multimodal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*GPU available:UserWarning"),
]


class Module(LightningModule):  # type: ignore[misc]
    def __init__(self, method: str, **arguments: Any) -> None:
        super().__init__()
        self.net = multimodal()
        self.method, self.arguments = method, arguments

    def training_step(self, batch: list[Tensor], index: int) -> Any:
        *inputs, target = batch
        return self.criterion(self.net(*inputs), target)

    def configure_optimizers(self) -> BalancedOptimizer:
        optimizer = wrapped(self.net, self.method, **self.arguments)
        self.criterion = optimizer.criterion(nn.CrossEntropyLoss())
        return optimizer

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        *inputs, target = batch
        self.criterion(self.net(*inputs), target)


class Manual(Module):
    modulates = True

    def __init__(self, method: str, **arguments: Any) -> None:
        super().__init__(method, **arguments)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:
        *inputs, target = batch
        opt = self.optimizers()
        opt.zero_grad()
        self.manual_backward(self.criterion(self.net(*inputs), target))
        if self.modulates:
            opt.modulate()
        self.clip_gradients(opt, gradient_clip_val=CLIP)
        opt.step()


class ClipsFirst(Manual):
    modulates = False


def fit(module: Module, *callbacks: Any, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": EPOCHS, "enable_checkpointing": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    checkpoint = arguments.pop("ckpt_path", None)
    trainer = Trainer(callbacks=list(callbacks), **(quiet | defaults | arguments))
    trainer.fit(module, loader(), loader(2, seed=3), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_the_clip_of_the_trainer_comes_after_modulation(method: str) -> None:
    module = Module(method)
    fit(module, BalanceCallback(metrics=metrics_of), gradient_clip_val=CLIP)

    assert_same(module.net, plain(method, clip=CLIP))


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_and_no_clip_equal_the_plain_loop(method: str) -> None:
    module = Module(method)
    fit(module, BalanceCallback(metrics=metrics_of), accumulate_grad_batches=2)

    assert_same(module.net, plain(method, accumulate=2))


@pytest.mark.parametrize("method", METHODS)
def test_manual_optimization_modulates_before_its_own_clip(method: str) -> None:
    module = Manual(method)
    fit(module, BalanceCallback(metrics=metrics_of))

    assert_same(module.net, plain(method, clip=CLIP))


def test_a_manual_clip_before_modulation_is_named() -> None:
    with pytest.warns(ModbalanceWarning, match=r"call `opt\.modulate\(\)` before it"):
        fit(ClipsFirst("ogm"), BalanceCallback())


def test_without_the_callback_the_clip_is_named() -> None:
    with pytest.warns(ModbalanceWarning, match="changed in place"):
        fit(Module("ogm"), gradient_clip_val=CLIP)


@pytest.mark.parametrize("method", ["mses", "mslr", "relearning"])
def test_epochs_end_once_with_the_loaders_of_the_trainer(method: str) -> None:
    module = Module(method)
    trainer = fit(module, BalanceCallback(metrics=metrics_of))

    assert trainer.optimizers[0].epoch == EPOCHS
    assert_same(module.net, plain(method))


def test_the_module_may_end_epochs_itself() -> None:
    class Ends(Module):
        def on_train_epoch_end(self) -> None:
            self.optimizers().end_epoch()

    trainer = fit(Ends("ogm"), BalanceCallback(end_epoch=False))
    assert trainer.optimizers[0].epoch == EPOCHS
    with pytest.raises(ConfigError, match=r"Found 2: leave `opt\.end_epoch\(\)` to the callback"):
        fit(Ends("ogm"), BalanceCallback())


def test_another_optimizer_is_refused_when_the_training_starts() -> None:
    class Bare(Module):
        def configure_optimizers(self) -> Any:
            super().configure_optimizers()
            return torch.optim.SGD(self.net.parameters(), 0.1)

    with pytest.raises(ConfigError, match=r"Found \['SGD'\]: wrap the optimizer"):
        fit(Bare("ogm"), BalanceCallback())


def test_several_validations_in_an_epoch_are_no_epochs() -> None:
    module = Module("agm", end_epoch=1)
    fit(module, BalanceCallback(), val_check_interval=1)

    assert_same(module.net, plain("agm", end_epoch=1))


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
@pytest.mark.parametrize("method", ["relearning", "ogm"])
def test_training_in_one_precision_equals_the_plain_loop(method: str, precision: Any, dtype: torch.dtype) -> None:
    module = Module(method)
    fit(module, BalanceCallback(metrics=metrics_of), precision=precision)

    assert_same(module.net, plain(method, dtype=dtype))


def test_relearning_without_the_callback_takes_the_loaders_of_a_training_in_double_precision() -> None:
    class Ends(Module):
        def on_train_epoch_end(self) -> None:
            self.optimizers().end_epoch(train=loader(), val=loader(2, seed=3))

    module = Ends("relearning")
    fit(module, precision="64-true")

    assert_same(module.net, plain("relearning", dtype=torch.float64))


@pytest.fixture
def _no_group_left() -> Iterator[None]:
    """End the process group that Lightning leaves, and take its variables off the environment."""
    before = dict(os.environ)
    yield
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("_no_group_left")
@pytest.mark.parametrize("method", METHODS)
def test_ddp_around_the_module_runs_one_forward_per_batch(method: str) -> None:
    class Whole(Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.net(a, b)

        def training_step(self, batch: list[Tensor], index: int) -> Any:
            *inputs, target = batch
            return self.criterion(self(*inputs), target)

        def configure_optimizers(self) -> BalancedOptimizer:
            optimizer = wrapped(self.net, self.method, around=self)
            self.criterion = optimizer.criterion(nn.CrossEntropyLoss())
            return optimizer

    module = Whole(method)
    alone = {"strategy": "ddp", "devices": 1, "use_distributed_sampler": False}
    fit(module, BalanceCallback(metrics=metrics_of), gradient_clip_val=CLIP, **alone)

    assert_same(module.net, plain(method, clip=CLIP))


def half_precision() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=1024.0))


def scaled(method: str) -> Multimodal:
    """Train in a plain loop in half precision with a GradScaler, both as Lightning configures them."""
    model, plugin = multimodal(), half_precision()
    scaler = plugin.scaler
    optimizer = wrapped(model, method)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for epoch in range(EPOCHS):
        for *inputs, target in loader():
            with plugin.forward_context():
                loss = criterion(model(*inputs), target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            optimizer.modulate()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            scaler.step(optimizer)
            scaler.update()
        optimizer.end_epoch(metrics=metrics_of(epoch))
    return model


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_unscaled_before_modulation(method: str) -> None:
    module = Module(method)
    fit(module, BalanceCallback(metrics=metrics_of), plugins=half_precision(), gradient_clip_val=CLIP)

    assert_same(module.net, scaled(method))


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable:UserWarning")
def test_a_checkpoint_from_within_an_epoch_resumes_in_it(tmp_path: Path) -> None:
    class Saves(Module):
        def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
            if self.trainer.global_step == STEPS + 2:
                self.trainer.save_checkpoint(tmp_path / "last.ckpt")

    fit(Saves("ogm"), BalanceCallback())
    trainer = fit(Module("ogm"), BalanceCallback(), ckpt_path=tmp_path / "last.ckpt", max_epochs=EPOCHS + 1)

    assert trainer.optimizers[0].epoch == EPOCHS + 1


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_a_checkpoint_at_the_end_of_an_epoch_resumes_as_if_nothing_happened(hook: str, tmp_path: Path) -> None:
    class Saves(Module):
        def save(self) -> None:
            if self.trainer.current_epoch == 0:
                self.trainer.save_checkpoint(tmp_path / "last.ckpt")

    setattr(Saves, hook, Saves.save)
    fit(Saves("relearning"), BalanceCallback(), max_epochs=1)
    resumed = Module("relearning")
    trainer = fit(resumed, BalanceCallback(), ckpt_path=tmp_path / "last.ckpt", max_epochs=2)

    assert trainer.optimizers[0].epoch == EPOCHS
    assert_close(resumed.net, plain("relearning"), atol=1e-6)


def test_remove_through_the_optimizer_of_lightning_takes_the_preset_clip_off() -> None:
    optimizer = wrapped(multimodal(), "cggm")
    assert optimizer._clip_grad_norm == 0.8
    LightningOptimizer(optimizer).remove()

    assert optimizer._clip_grad_norm is None
