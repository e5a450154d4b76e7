"""Gradients and mean input of a sub-step, over the samples of all ranks that have a modality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor, nn

from modbalance import Batch
from modbalance.scores import row_mask, widened


@attrs.frozen(eq=False)
class SubStep:
    """Gradients and mean input of a sub-step.

    Attributes:
        gradients: Gradients of the head by name.
        mean_input: Mean input r of the last layer, (D,); ``None`` without projection.
        factor: Factor on the loss of this rank, 0-dim; ``None``: 1.
        is_absent: Whether no sample of any rank has the modality, 0-dim; ``None``: all have it.
    """

    gradients: dict[str, Tensor]
    mean_input: Tensor | None
    factor: Tensor | None = None
    is_absent: Tensor | None = None


@contextmanager
def inputs_of(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """Yield a list that receives the first argument of each call of a layer; it stays empty without one."""
    entered: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        entered.append([*args, *kwargs.values()][0])

    handle = None if layer is None else layer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield entered
    finally:
        if handle is not None:
            handle.remove()


def mean_input(x: Tensor, there: Tensor | None) -> Tensor:
    """Return the mean over samples and places of inputs (B, ..., D), those of absent samples as zeros; (D,)."""
    x = widened(x if there is None else x.masked_fill(~row_mask(there, x), 0)).flatten(0, -2)
    return x.sum(0) / max(len(x), 1)


def of_all_ranks(batch: Batch, name: str, gradients: Mapping[str, Tensor], r: Tensor | None) -> SubStep:
    """Return means over the samples of all ranks that have a modality.

    Args:
        batch: The batch of this rank.
        name: The modality.
        gradients: Gradients of the head on this rank, by a loss in which absent samples have a gradient of 0.
        r: Mean input on this rank, of inputs that are 0 for absent samples.
    """
    run, there, device = batch.run, batch.present.get(name), batch.logits.device
    if there is None and run.ranks == 1:
        return SubStep(dict(gradients), r)
    dtype = torch.promote_types(batch.logits.dtype, torch.float32)
    size = torch.full((), float(len(batch.logits)), dtype=dtype, device=device)
    count = size if there is None else there.to(device).sum(dtype=size.dtype)
    values = [*gradients.values()] if r is None else [*gradients.values(), r]
    *values, size, count = run.means([*values, size, count])
    share = torch.where(count > 0, size / count.where(count > 0, 1), 1)
    mean = None if r is None else values.pop() * share
    # A loss that is a sum has no number of samples in it.
    factor = share if getattr(run.loss_fn, "reduction", "mean") == "mean" else torch.ones_like(share)
    scaled = {key: each * factor.to(each) for key, each in zip(gradients, values, strict=True)}
    return SubStep(scaled, mean, factor, count == 0)
