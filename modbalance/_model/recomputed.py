"""Outputs without a graph, whose computation runs again in the backward, after that of all else.

Activation checkpointing as in torch recomputes when gradients arrive, which is while the graph of the forward is still
there. Here the graph of the forward goes first, node by node; then the computation runs again, its gradients are taken,
and its graph goes, too. Both are never in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Run = Callable[..., Sequence[Tensor]]


def recomputed(run: Run, parameters: Iterable[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the outputs of ``run(*tensors)`` without graph; in the backward it runs again, with equal random numbers.

    Gradients reach parameters as inputs of one node, so that each parameter gets one gradient per backward, as
    DistributedDataParallel wants it.

    Args:
        run: The computation, without gradients at first. It may not depend on anything that changes until the
            backward, and may not refer to what is computed from its outputs, which would keep memory.
        parameters: Leaves that it uses.
        tensors: All else that gradients should reach.
    """
    leaves = [parameter for parameter in parameters if parameter.requires_grad]
    if not torch.is_grad_enabled() or not (leaves or any(tensor.requires_grad for tensor in tensors)):
        return tuple(run(*tensors))
    devices = {leaf.device for leaf in (*leaves, *tensors) if leaf.is_cuda}
    arguments = (run, _RandomState(devices), len(leaves), *leaves, *tensors)
    outputs: tuple[Tensor, ...] = _Recomputed.apply(*arguments)
    node: Any = next(output.grad_fn for output in outputs)
    # Of the nodes that are ready, autograd runs the one with the largest number: this one is the last.
    node._set_sequence_nr(0)
    return outputs


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, random: _RandomState, count: int, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.random, ctx.count = run, random, count
        ctx.save_for_backward(*sources)  # torch raises if one has changed by the time of the backward
        ctx.set_materialize_grads(False)
        return tuple(run(*sources[count:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        leaves, tensors = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        # The graph ends here: what the tensors come from is of the outer backward.
        cut = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        with torch.enable_grad(), ctx.random.again():
            outputs = ctx.run(*cut)
        sources = [source for source in (*leaves, *cut) if source.requires_grad]
        pairs = [(out, g) for out, g in zip(outputs, gradients, strict=True) if g is not None and out.requires_grad]
        found: Iterator[Tensor | None] = iter([None] * len(sources))
        if pairs:
            reached, given = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(reached, sources, given, allow_unused=True))
        return None, None, None, *(next(found) if source.requires_grad else None for source in (*leaves, *cut))


class _RandomState:
    """State of the random number generators, on the host and on some devices, as it is now."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._host = torch.random.get_rng_state()
        self._devices = {device: torch.cuda.get_rng_state(device) for device in devices}

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw in the body what was drawn from this state; restore the generators after it."""
        with torch.random.fork_rng([device.index for device in self._devices]):
            torch.random.set_rng_state(self._host)
            for device, state in self._devices.items():
                torch.cuda.set_rng_state(state, device)
            yield
