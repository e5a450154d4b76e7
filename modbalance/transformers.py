"""The Trainer of Transformers: a callback that modulates before its clip, and ends the epochs of BalancedOptimizer.

The Trainer clips by default (`max_grad_norm=1.0`), and calls `on_pre_optimizer_step` after that. It clips through its
Accelerator, where the callback therefore modulates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modbalance._epochs import EpochKeeper, Metrics
from modbalance.accelerate import modulate_before_clip, unwrapped
from modbalance.context import Forwarder, default_forward
from modbalance.errors import ConfigError
from modbalance.optimizer import BalancedOptimizer

__all__ = ["BalanceCallback"]


class BalanceCallback(TrainerCallback):  # type: ignore[misc]    # mypy does not follow the package
    """Modulates the gradients of a BalancedOptimizer before the clip of the Trainer, and ends its epochs.

    The Trainer gets the optimizer as ``optimizers=(opt, None)`` and the criterion in `compute_loss_func`; then
    ``trainer.add_callback(BalanceCallback(trainer))``. Methods that act between epochs get the loaders of the Trainer.

    Args:
        trainer: The Trainer, whose clip is to come after modulation.
        forward: ``(model, batch) -> (logits, target)``, see `BalancedOptimizer.end_epoch`. Default: a batch is a
            mapping, whose ``labels`` are the target, and the model gets the rest by name; the logits are what it
            returns, or the item ``logits`` of that.
        metrics: From the 0-based epoch to ``{"loss": {modality: float}, "accuracy": {...}}``, for methods that need
            numbers only.
        end_epoch: Whether the callback ends epochs. ``False``: the user calls `opt.end_epoch()`.

    Raises:
        ConfigError: At once: there is no Trainer. When the training begins: its optimizer is no BalancedOptimizer.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        forward: Forwarder | None = None,
        metrics: Metrics | None = None,
        end_epoch: bool = True,
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise ConfigError(
                f"Parameter `trainer` should be the Trainer. Found {type(trainer).__name__}: build it first, then "
                "`trainer.add_callback(BalanceCallback(trainer))`."
            )
        self._trainer = trainer
        self._forward = forward or _forward
        self._metrics = metrics
        self._ends_epochs = end_epoch
        self._epochs = EpochKeeper()
        self._epoch = 0
        self._has_begun = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the Trainer's Accelerator modulate before it clips."""
        self._epochs, self._has_begun = EpochKeeper(), False
        found = unwrapped(self._trainer.optimizer)
        if not isinstance(found, BalancedOptimizer):
            raise ConfigError(
                "The Trainer should train with a BalancedOptimizer where it has a BalanceCallback. Found "
                f"{type(found).__name__}: pass `optimizers=(opt, None)`, with a scheduler or None, to the Trainer."
            )
        modulate_before_clip(self._trainer.accelerator, found)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the training of the optimizer, and set its epoch, which a checkpoint may be behind."""
        self._epoch = int(state.epoch or 0)
        if not self._has_begun:
            self._has_begun = True
            self._optimizer.begin(**self._data())
        if self._ends_epochs:
            self._epochs.begin([self._optimizer], self._epoch, self._end)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the epoch, before the Trainer evaluates and saves."""
        if self._ends_epochs:
            self._epochs.end([self._optimizer], self._epoch, self._end)

    @property
    def _optimizer(self) -> BalancedOptimizer:
        found: BalancedOptimizer = unwrapped(self._trainer.optimizer)
        return found

    def _end(self, optimizer: BalancedOptimizer) -> None:
        metrics = None if self._metrics is None else self._metrics(optimizer.epoch)
        optimizer.end_epoch(metrics=metrics, **self._data())

    def _data(self) -> dict[str, Any]:
        trainer = self._trainer
        val = None if trainer.eval_dataset is None else trainer.get_eval_dataloader()
        return {"train": trainer.callback_handler.train_dataloader, "val": val, "forward": self._forward}


def _forward(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    """Return logits and target of a batch of the Trainer, whose loaders move it to the device."""
    if not isinstance(batch, Mapping):
        return default_forward(model, batch)
    inputs = dict(batch)
    target = inputs.pop("labels", None)
    if target is None:
        raise ConfigError(
            f"A batch of the Trainer should hold the target as 'labels'. Found {sorted(map(str, batch))}: pass "
            "`BalanceCallback(trainer, forward=lambda model, batch: (logits, target))`."
        )
    output = model(**inputs)
    return (output["logits"] if isinstance(output, Mapping) else output), target
