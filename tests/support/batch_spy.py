"""A method that records what a test computes from each observed batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from torch import Tensor, nn

from modbalance import BalancedOptimizer, Batch, Method, hookimpl
from support.models import Multimodal
from support.training import sgd


@attrs.define(eq=False, kw_only=True)
class Spy(Method):
    """Hands each observed batch to ``look`` and keeps what that returns."""

    name: ClassVar[str] = "spy"
    look: Callable[[Batch], Any]
    seen: list[Any] = attrs.field(factory=list)

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(self.look(batch))
        return {}


def described(model: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Return the arguments that describe one of the small models."""
    base = {"modalities": model.paths, "fusion": "fusion"} if isinstance(model, Multimodal) else {}
    return base | arguments


def spy_on(model: nn.Module, look: Callable[[Batch], Any], **arguments: Any) -> tuple[BalancedOptimizer, list[Any]]:
    """Return an optimizer with a spy, and the list that the spy fills."""
    spy = Spy(look=look)
    return BalancedOptimizer(sgd(model), spy, model=model, **described(model, **arguments)), spy.seen


def look_once(
    model: nn.Module,
    look: Callable[[Batch], Any],
    positional: tuple[Any, ...],
    target: Tensor,
    *,
    keywords: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Run one forward and criterion call, and return what ``look`` made of the batch."""
    optimizer, seen = spy_on(model, look, **arguments)
    optimizer.criterion(nn.CrossEntropyLoss())(model(*positional, **(keywords or {})), target)
    return seen[0]


def coalition(*subset: str, **options: Any) -> Callable[[Batch], Tensor]:
    """Return a look at the logits of the coalition ``subset``."""
    return lambda batch: batch.coalition_logits(subset, **options)
