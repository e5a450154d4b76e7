"""Peak memory of a step at any size, counted on fake tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensorMode

from bench.models import Workload, balanced, inner, training_step
from support.live_bytes import LiveBytes


def peak_of_a_step(workload: Workload, method: str | None, **options: Any) -> tuple[int, int]:
    """Return the most bytes in a step, with weights, gradients and state, and those that it adds for good.

    Args:
        workload: Model and batch; neither is computed.
        method: The method; ``None``: the inner optimizer alone.
        options: Options of the method.
    """
    with FakeTensorMode():
        model, (inputs, target) = workload.build(), workload.batch()
        optimizer = inner(model) if method is None else balanced(model, method, **options)
        step = training_step(model, model, optimizer, (inputs, target))
        step()
        state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        with LiveBytes([*model.parameters(), *model.buffers(), *inputs, *state, *gradients]) as live:
            step()
            before = live.now
            step()
        return live.peak, live.now - before
