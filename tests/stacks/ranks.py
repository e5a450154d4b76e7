"""Stacks of two processes: in one pair of them, all methods train in a stack, one after the other.

A rank has every second sample of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from modbalance import ConfigError, ModbalanceError, sharding
from stacks.training import Weights, built, methods, run, without_noise
from support.models import Multimodal
from support.ranks import on_ranks
from support.training import multimodal_for, weights

Found = dict[str, Weights | str]


def ddp(rank: int, method: str) -> Weights:
    model = multimodal_for(method)
    parallel = DistributedDataParallel(model)
    run(model, built(model, method, seen=parallel), forward=parallel, rank=rank)
    return weights(model)


def zero(rank: int, method: str) -> Weights:
    """Train with DDP and an optimizer state that is divided among the ranks."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = multimodal_for(method)
    parallel = DistributedDataParallel(model)
    inner = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)
    run(model, built(model, method, inner=inner, seen=parallel), forward=parallel, rank=rank)
    return weights(model)


def shard(model: Multimodal, how: str) -> None:
    # Here and not above: it came with torch 2.6.
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    units = [*model.encoders.values()] if "encoders" in how else []
    for unit in [*units, model.fusion] if "fusion" in how else units:
        fully_shard(unit, mesh=mesh)
    if how == "resharded":
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    else:
        fully_shard(model, mesh=mesh)


def fsdp(rank: int, method: str, how: str) -> Weights:
    model = multimodal_for(method)
    shard(model, how)
    run(model, built(model, method, **without_noise(method)), rank=rank)
    sharding.reshard(model)
    return {name: sharding.whole(p).detach().clone() for name, p in model.named_parameters()}


STACKS: dict[str, Callable[[int, str], Weights]] = {
    "ddp": ddp,
    "zero": zero,
    **{how: functools.partial(fsdp, how=how) for how in ("model", "encoders", "encoders and fusion", "resharded")},
}


def all_trained(rank: int, stack: str) -> Found:
    """Return the weights by method, or the message of its refusal."""
    found: Found = {}
    for method in methods():
        try:
            found[method] = STACKS[stack](rank, method)
        except ModbalanceError as error:
            found[method] = str(error)
    return found


@functools.cache
def _on_two_ranks(stack: str) -> list[Found]:
    return on_ranks(all_trained, stack)


def trained(stack: str, method: str) -> Weights:
    """Return the weights after a training on two ranks.

    Raises:
        ConfigError: With the message of the ranks that refused.
        AssertionError: The ranks do not agree.
    """
    first, second = (each[method] for each in _on_two_ranks(stack))
    if isinstance(first, str) or isinstance(second, str):
        assert first == second
        raise ConfigError(first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    return first
