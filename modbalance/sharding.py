"""Sharded tensors (DTensor, as of `fully_shard`): whole values, local parts, and modules whose weights are whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modbalance.errors import ConfigError

__all__ = [
    "by_layout",
    "gathered",
    "is_sharded",
    "local",
    "local_part",
    "local_values",
    "reshard",
    "rows_of_shards",
    "shards_of",
    "whole",
]

# Known by their methods: the import of torch.distributed.tensor takes longer than that of this library.


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the tensor is a DTensor, of which this rank may hold a part alone."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor, without graph if it is sharded; the same on all ranks, which call this together."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return full


def local(tensor: Tensor) -> Tensor:
    """Return the part that this rank holds, without graph, in the same memory; the tensor itself if not sharded."""
    if not is_sharded(tensor):
        return tensor
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def local_values(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return `local` of each tensor, with a call of it for sharded tensors alone."""
    return [local(each) if hasattr(each, "full_tensor") else each for each in tensors]


def local_part(full: Tensor, like: Tensor) -> Tensor:
    """Return the part of ``full``, equal on all ranks, that this rank holds of ``like``; no communication.

    Args:
        full: Tensor of the shape of ``like``.
        like: A tensor, sharded or not.
    """
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    replicated = DTensor.from_local(full, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)
    return local(replicated.redistribute(placements=like.placements))


def shards_of(tensors: Iterable[Tensor]) -> list[int]:
    """Return which of the parts of each tensor this rank holds, from 1; 0 for one that every rank holds whole."""
    return [_shard_of(each) if hasattr(each, "full_tensor") else 0 for each in tensors]


def _shard_of(tensor: Tensor) -> int:
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    index, is_split = 0, False
    for dim, placement in enumerate(placements):
        if placement.is_shard():
            index, is_split = index * mesh.size(dim) + mesh.get_local_rank(dim), True
    return index + 1 if is_split else 0


def by_layout(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the places of sharded tensors, in groups that are sharded in the same way over the same ranks."""
    groups: dict[Any, list[int]] = {}
    for place, tensor in enumerate(tensors):
        if hasattr(tensor, "full_tensor"):
            dims = tuple(p.is_shard() for p in tensor.placements)  # type: ignore[attr-defined]
            groups.setdefault((tensor.device_mesh, dims), []).append(place)  # type: ignore[attr-defined]
    return [*groups.values()]


def rows_of_shards(row: Tensor, like: Tensor) -> Tensor:
    """Return the row that each rank with another part of ``like`` gives, stacked, (P, ...), in one gathering."""
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(like, DTensor)
    depth = 0
    placements: list[Any] = []
    for placement in like.placements:
        placements.append(Shard(depth) if placement.is_shard() else placement)
        depth += placement.is_shard()
    rows = DTensor.from_local(row[(None,) * max(depth, 1)], like.device_mesh, placements, run_check=False)
    return rows.full_tensor().view(-1, *row.shape)


def reshard(model: nn.Module) -> None:
    """Let the parameters of the model be the sharded ones, also after a forward that left them whole."""
    for module in model.modules() if _is_distributed() else ():
        if _is_unit(module):
            module.reshard()  # type: ignore[operator]


_REFUSAL = (
    "The fusion should be a unit of `fully_shard` itself where a method runs it again and {}. Found weights that are "
    "sharded again after the forward of a larger unit: call `fully_shard` on the fusion too, or pass "
    "`reshard_after_forward=False` for the unit that it belongs to."
)


@contextmanager
def gathered(modules: Iterable[nn.Module], inputs: Iterable[Tensor]) -> Iterator[None]:
    """Let sharded parameters of modules be whole in the body, where no forward of theirs gathers them.

    That is the case for a part of a unit of `fully_shard` after the forward of that unit. No gradient reaches them.

    Raises:
        ConfigError: Such a parameter needs a gradient from the body, or another type than that of the inputs: the unit
            converts its parameters in a way that is not known here.
    """
    owners = [each for module in modules for each in _ungathered(module)] if _is_distributed() else []
    parameters = [p for owner in owners for p in _sharded(owner).values()]
    types = {t.dtype for t in (*inputs, *parameters) if t.is_floating_point()} if parameters else set()
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        raise ConfigError(_REFUSAL.format("trains it by that"))
    if len(types) > 1 and not torch.is_autocast_enabled(parameters[0].device.type):
        raise ConfigError(_REFUSAL.format("the unit has a `MixedPrecisionPolicy`"))
    kept = [(owner._parameters, dict(owner._parameters)) for owner in owners]
    try:
        for owner in owners:
            owner._parameters.update({name: nn.Parameter(whole(p), False) for name, p in _sharded(owner).items()})
        yield
    finally:
        for registered, before in kept:
            registered.update(before)


def _ungathered(module: nn.Module) -> Iterator[nn.Module]:
    """Yield modules with sharded parameters that are in no unit at or below ``module``."""
    if _is_unit(module):
        return
    if _sharded(module):
        yield module
    for child in module.children():
        yield from _ungathered(child)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_unit(module: nn.Module) -> bool:
    """Return whether `fully_shard` was called on the module, which gathers its parameters in its own forward."""
    return hasattr(module, "reshard") and hasattr(module, "unshard")


def _sharded(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module._parameters.items() if p is not None and is_sharded(p)}
