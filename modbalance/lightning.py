"""Lightning: a callback that modulates before the clip of the Trainer, and ends the epochs of BalancedOptimizer.

Lightning calls `on_before_optimizer_step` of its callbacks after the backward and the unscaling of gradients, and
before `gradient_clip_val` acts. In manual optimization it does so in `opt.step()`, after a clip by
`self.clip_gradients`: there, call `opt.modulate()` before that clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from modbalance._epochs import EpochKeeper, Metrics
from modbalance.context import Forwarder, default_forward
from modbalance.errors import ConfigError
from modbalance.optimizer import BalancedOptimizer

__all__ = ["BalanceCallback"]


class BalanceCallback(Callback):  # type: ignore[misc]    # of a package without types
    """Modulates the gradients of each BalancedOptimizer before the clip of the Trainer, and ends its epochs.

    `configure_optimizers` returns the BalancedOptimizer, and `training_step` takes its loss from `opt.criterion`.
    Methods that act between epochs get the Trainer's loader of training data and its first one of validation data;
    each batch is moved and converted as Lightning does it, and the model runs in the precision of the Trainer.

    Args:
        forward: ``(model, batch) -> (logits, target)``, see `BalancedOptimizer.end_epoch`; default
            ``model(*batch[:-1]), batch[-1]``.
        metrics: From the 0-based epoch to ``{"loss": {modality: float}, "accuracy": {...}}``, for methods that need
            numbers only.
        end_epoch: Whether the callback ends epochs. ``False``: the module calls `opt.end_epoch()`.

    Raises:
        ConfigError: When the training starts: none of its optimizers is a BalancedOptimizer.
    """

    def __init__(
        self, *, forward: Forwarder | None = None, metrics: Metrics | None = None, end_epoch: bool = True
    ) -> None:
        self._forward = forward or default_forward
        self._metrics = metrics
        self._ends_epochs = end_epoch
        self._epochs = EpochKeeper()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a BalancedOptimizer."""
        self._epochs = EpochKeeper()
        if not _balanced(trainer):
            found = [type(optimizer).__name__ for optimizer in trainer.optimizers]
            raise ConfigError(
                "`configure_optimizers` should return a BalancedOptimizer where Lightning has a BalanceCallback. Found "
                f"{found}: wrap the optimizer there, `return BalancedOptimizer(optimizer, method, model=self, ...)`."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the training of the optimizers, and set their epoch, which a checkpoint may be behind."""
        for each in _balanced(trainer):
            each.begin(**self._data(trainer))
        if self._ends_epochs:
            self._epochs.begin(_balanced(trainer), trainer.current_epoch, lambda each: self._end(trainer, each))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Modulate: the Trainer's clip comes next."""
        if isinstance(optimizer, BalancedOptimizer):
            optimizer.modulate()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the epoch, before the callbacks that save checkpoints."""
        if self._ends_epochs:
            self._epochs.end(_balanced(trainer), trainer.current_epoch, lambda each: self._end(trainer, each))

    def _end(self, trainer: Trainer, optimizer: BalancedOptimizer) -> None:
        metrics = None if self._metrics is None else self._metrics(optimizer.epoch)
        optimizer.end_epoch(metrics=metrics, **self._data(trainer))

    def _data(self, trainer: Trainer) -> dict[str, Any]:
        val = _first(trainer.val_dataloaders)
        return {"train": trainer.train_dataloader, "val": val, "forward": self._forward_in(trainer)}

    def _forward_in(self, trainer: Trainer) -> Forwarder:
        def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = trainer.lightning_module.on_before_batch_transfer(batch, 0)
            batch = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.forward_context():
                return self._forward(model, batch)

        return forward


def _balanced(trainer: Trainer) -> list[BalancedOptimizer]:
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, BalancedOptimizer)]


def _first(loaders: Any) -> Any:
    while isinstance(loaders, list | tuple | Mapping):
        if not loaders:
            return None
        loaders = next(iter(loaders.values())) if isinstance(loaders, Mapping) else loaders[0]
    return loaders
