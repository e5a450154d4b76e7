"""Uneven numbers of batches on the ranks of DDP, with `torch.distributed.algorithms.join.Join([model, opt])`.

A rank that has run out of batches takes part in the reductions of the others with zeros, so that coefficients are those
of the ranks that still train. At the end it takes over the state of a rank that took every step.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from modbalance._checkpoint import Checkpoint
from modbalance._lifecycle import Lifecycle
from modbalance._nested import nested
from modbalance.errors import ConfigError

if TYPE_CHECKING:
    from modbalance._ranks import Ranks

ORDER = (
    "`Join` should get the model first, whose forward tells the other ranks of each batch. Found the optimizer first: "
    "write `Join([model, opt])`, with the model wrapped by DistributedDataParallel."
)


class UnevenInputs:
    """The join hook of one optimizer: torch calls `main_hook` for each step of the others, then `post_hook`."""

    def __init__(self, owner: Any, inner: Optimizer, lifecycle: Lifecycle) -> None:
        sharded = next((each for each in nested(inner) if hasattr(each, "join_hook")), None)
        if sharded is not None:
            raise ConfigError(
                f"`Join` should get an optimizer whose state every rank holds. Found {type(sharded).__name__} inside "
                "of BalancedOptimizer, which distributes it: give each rank as many batches, without `Join`."
            )
        self._owner = owner
        self._inner = inner
        self._lifecycle = lifecycle
        self._is_over = False
        self._config: Any = None
        self._ranks: Ranks = lifecycle.training.ranks
        self._ranks.uneven = self

    @property
    def is_active(self) -> bool:
        """Whether the context is entered and not over; torch sets its switch after it asked for this hook."""
        return not self._is_over and bool(self._owner._join_config.enable)

    @property
    def is_of_this_context(self) -> bool:
        """Whether the model has entered no other context since, which would not know of the optimizer."""
        return self._config is None or self._config is self._ranks.join_config

    def check_order(self) -> None:
        """Raise a ConfigError where the optimizer stands before the model."""
        if self._config is None:  # torch makes it after it asked for this hook
            self._config = self._ranks.join_config
        if self.is_active and self._owner._join_config.is_first_joinable:
            raise ConfigError(ORDER)

    def main_hook(self) -> None:
        """Take part in the reduction of one step, with zeros; a backward without synchronization ends no step."""
        self.check_order()
        if self._ranks.synchronizes:
            self._ranks.shadow_step(self._lifecycle.observing)

    def post_hook(self, is_last_joiner: bool) -> None:
        """Take over the state of a rank that took every step, unless all did."""
        self._is_over = True
        source = self._ranks.source_of_state(is_last_joiner)
        if source is None:
            return
        checkpoint = Checkpoint(self._inner, self._lifecycle)
        sent = self._ranks.rank == source
        file = io.BytesIO()
        if sent:
            torch.save(checkpoint.save(), file)
        received = self._ranks.broadcast_object(file.getvalue(), source)
        if not is_last_joiner:
            checkpoint.load(torch.load(io.BytesIO(received), map_location="cpu", weights_only=True))
