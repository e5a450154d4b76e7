"""Epochs of a framework and of its BalancedOptimizers, kept equal; shared by the adapters to frameworks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from modbalance.errors import ConfigError
from modbalance.optimizer import BalancedOptimizer

Metrics = Callable[[int], Mapping[str, Mapping[str, float]]]
End = Callable[[BalancedOptimizer], None]


class EpochKeeper:
    """Ends each epoch of a framework once, in its optimizers, and makes up for an end that a checkpoint has missed.

    A checkpoint that a framework writes in the last validation of an epoch holds the state before the end of it, and
    the resumed run begins with the next epoch.
    """

    def __init__(self) -> None:
        self._ended: int | None = None

    def begin(self, optimizers: Sequence[BalancedOptimizer], epoch: int, end: End) -> None:
        """Set the epoch, 0-based, of all optimizers; end the one before first, if that was missed.

        Raises:
            ConfigError: The training ends epochs as well.
        """
        for optimizer in optimizers:
            if self._ended is not None and self._ended == epoch - 1 and optimizer.epoch != epoch:
                raise ConfigError(
                    f"`opt.epoch` should be {epoch} at the beginning of epoch {epoch}, as the callback set it. Found "
                    f"{optimizer.epoch}: leave `opt.end_epoch()` to the callback, or pass it `end_epoch=False`."
                )
            if optimizer.epoch == epoch - 1 and optimizer._lifecycle.training.steps:
                end(optimizer)
            optimizer.epoch = epoch

    def end(self, optimizers: Sequence[BalancedOptimizer], epoch: int, end: End) -> None:
        """End an epoch in all optimizers that are still in it."""
        for optimizer in optimizers:
            if optimizer.epoch == epoch:
                end(optimizer)
        self._ended = epoch
