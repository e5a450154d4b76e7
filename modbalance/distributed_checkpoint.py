"""The state of methods in torch's distributed checkpoints, beside that of the inner optimizer."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from modbalance import sharding
from modbalance._checkpoint import KEY, Checkpoint
from modbalance.errors import CheckpointError
from modbalance.optimizer import BalancedOptimizer

__all__ = ["MethodState"]


class MethodState:
    """Saves and loads the key ``modbalance`` of an optimizer's state as one value.

    torch loads a distributed checkpoint into a state that is there already, key by key: averages that a new run does
    not have yet would be left out. Its helpers for optimizers keep ``state`` and ``param_groups`` alone. With this
    object beside them, ``{"model": ..., "optimizer": ..., "modbalance": MethodState(opt)}``, a resumed training is the
    uninterrupted one. Call ``set_optimizer_state_dict`` of torch after the load.

    Args:
        optimizer: The optimizer; on all ranks, whose methods have equal states.
    """

    def __init__(self, optimizer: BalancedOptimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the state as bytes under ``packed``, equal on all ranks.

        Raises:
            CheckpointError: A method holds sharded tensors, of which each rank has another part.
        """
        own = Checkpoint(self.optimizer._inner, self.optimizer._lifecycle).save_own()
        if names := [path for path, value in _tensors(own) if sharding.is_sharded(value)]:
            raise CheckpointError(
                f"The state of methods should be equal on all ranks. Found sharded tensors in {names[0]!r}, of which "
                "each rank has another part: save `opt.state_dict()` of each rank in a file of its own, or choose "
                "options of the method that keep no copies of weights."
            )
        file = io.BytesIO()
        torch.save(own, file)
        return {"packed": file.getvalue()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore the state of the methods; the inner optimizer stays as it is.

        Raises:
            CheckpointError: The state is of another method, model or version; nothing is changed.
        """
        own = torch.load(io.BytesIO(saved["packed"]), map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict({KEY: own})


def _tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _tensors(item, f"{path}/{key}" if path else str(key))
