"""The callback of the Trainer: its training equals the plain loop, the clip that it makes by default included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning
from modbalance.transformers import BalanceCallback
from support.models import Multimodal
from support.stacks import CLIP, EPOCHS, METHODS, SIZE, STEPS, accelerate_as_new, dataset, metrics_of, plain, wrapped
from support.training import assert_close, assert_same, multimodal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning"),  # of versions before 5
]


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    with accelerate_as_new():
        yield


class Named(Dataset[dict[str, Tensor]]):
    def __init__(self, count: int, seed: int, target: str = "labels") -> None:
        self.samples = dataset(count, seed)
        self.target = target

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        a, b, target = self.samples[index]
        return {"a": a, "b": b, self.target: target}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = multimodal()

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(a, b)}


class Unshuffled(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer_of(model: nn.Module, optimizer: Any, folder: Path, **arguments: Any) -> Trainer:
    criterion = optimizer.criterion(nn.CrossEntropyLoss(), logits_of="logits")
    settings = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": SIZE,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    return Unshuffled(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **(settings | arguments)),
        train_dataset=Named(STEPS, 1),
        eval_dataset=Named(2, 3),
        optimizers=(optimizer, None),
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: criterion(outputs, labels),
    )


def build(method: str, folder: Path, **arguments: Any) -> tuple[Trainer, Multimodal, BalancedOptimizer]:
    model = Model()
    optimizer = wrapped(model.net, method, around=model)
    return trainer_of(model, optimizer, folder, **arguments), model.net, optimizer


@pytest.mark.parametrize("clip", [CLIP, 0.0])
@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_its_clip_comes_after_modulation(method: str, clip: float, tmp_path: Path) -> None:
    trainer, net, _ = build(method, tmp_path, max_grad_norm=clip)
    trainer.add_callback(BalanceCallback(trainer, metrics=metrics_of))
    trainer.train()

    assert_same(net, plain(method, clip=clip or None))


def test_without_the_callback_its_default_clip_is_named(tmp_path: Path) -> None:
    trainer, _, _ = build("ogm", tmp_path)
    with pytest.warns(ModbalanceWarning, match=r"call `opt\.modulate\(\)` before it"):
        trainer.train()


@pytest.mark.parametrize("method", METHODS)
def test_bf16_equals_the_plain_loop(method: str, tmp_path: Path) -> None:
    trainer, net, _ = build(method, tmp_path, max_grad_norm=CLIP, bf16=True)
    trainer.add_callback(BalanceCallback(trainer, metrics=metrics_of))
    trainer.train()

    # Older versions have an autocast of their own around the loss on the CPU.
    around_loss = trainer.compute_loss_context_manager
    assert_same(net, plain(method, clip=CLIP, autocast=torch.bfloat16, around_loss=around_loss))


@pytest.mark.parametrize("method", ["mses", "mslr", "relearning"])
def test_epochs_end_once_with_its_loaders(method: str, tmp_path: Path) -> None:
    trainer, net, optimizer = build(method, tmp_path, max_grad_norm=0.0)
    trainer.add_callback(BalanceCallback(trainer, metrics=metrics_of))
    trainer.train()

    assert optimizer.epoch == EPOCHS
    assert_same(net, plain(method))


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_run_resumes_from_the_end_of_an_epoch_or_the_middle(strategy: str, tmp_path: Path) -> None:
    for steps in (3, STEPS) if strategy == "steps" else (STEPS,):
        folder = tmp_path / str(steps)
        saving, _, _ = build("relearning", folder, save_strategy=strategy, save_steps=steps, max_grad_norm=0.0)
        saving.add_callback(BalanceCallback(saving))
        saving.train()
        resumed, net, optimizer = build("relearning", folder, max_grad_norm=0.0)
        resumed.add_callback(BalanceCallback(resumed))
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{steps}"))

        assert optimizer.epoch == EPOCHS
        assert_close(net, plain("relearning"), atol=1e-6)


def test_epochs_that_are_ended_twice_are_refused(tmp_path: Path) -> None:
    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            optimizer.end_epoch()

    trainer, _, optimizer = build("ogm", tmp_path)
    trainer.add_callback(BalanceCallback(trainer))
    trainer.add_callback(Ends())
    with pytest.raises(ConfigError, match=r"should be 1 .*Found 2: leave `opt\.end_epoch\(\)` to the callback"):
        trainer.train()


def test_an_epoch_that_the_user_has_ended_is_not_ended_again(tmp_path: Path) -> None:
    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            optimizer.end_epoch()

    trainer, _, optimizer = build("ogm", tmp_path)
    trainer.add_callback(Ends())
    trainer.add_callback(BalanceCallback(trainer))
    trainer.train()

    assert optimizer.epoch == EPOCHS


def test_the_user_may_end_epochs_alone(tmp_path: Path) -> None:
    trainer, _, optimizer = build("ogm", tmp_path)
    trainer.add_callback(BalanceCallback(trainer, end_epoch=False))
    trainer.train()

    assert optimizer.epoch == 0


def test_a_trainer_with_another_optimizer_is_refused(tmp_path: Path) -> None:
    trainer, _, optimizer = build("ogm", tmp_path)
    trainer.optimizer = optimizer._inner
    trainer.add_callback(BalanceCallback(trainer))
    with pytest.raises(ConfigError, match=r"Found SGD: pass `optimizers=\(opt, None\)`"):
        trainer.train()


def test_a_callback_without_trainer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Found NoneType: build it first, then `trainer\.add_callback"):
        BalanceCallback(None)


def test_a_batch_without_labels_is_refused(tmp_path: Path) -> None:
    trainer, _, _ = build("relearning", tmp_path)
    trainer.eval_dataset = Named(2, 3, target="y")
    trainer.add_callback(BalanceCallback(trainer))
    with pytest.raises(ConfigError, match=r"the target as 'labels'\. Found \['a', 'b', 'y'\]: pass"):
        trainer.train()
