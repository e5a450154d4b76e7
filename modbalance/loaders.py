"""For methods that look at data between epochs: what a loader draws from, and what one pass over it may change."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DistributedSampler

if TYPE_CHECKING:
    from modbalance.records import Forwarder
    from modbalance.run import Run


def distributed_sampler(loader: Any) -> DistributedSampler[Any] | None:
    """Return the `DistributedSampler` that a loader draws from, if it does."""
    return next((part for part in _parts(loader) if isinstance(part, DistributedSampler)), None)


@contextmanager
def rng_kept(loaders: Sequence[Any], device: torch.device) -> Iterator[None]:
    """Restore after the body what drawing from loaders consumes: the random states of torch, numpy and Python.

    Generators of the loaders and of their samplers are restored too; those inside of worker processes cannot be.
    """
    parts = [part for loader in loaders for part in _parts(loader)]
    own = [g for part in parts if isinstance(g := getattr(part, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in own]
    numpy: Any = sys.modules.get("numpy")
    of_python, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(of_python)
        if of_numpy is not None:
            numpy.random.set_state(of_numpy)
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


def recalibrate_batch_norm(run: Run, loader: Iterable[Any], forward: Forwarder) -> None:
    """Set the running statistics of batch norms to the mean of the batch statistics over a loader, on all ranks.

    Everything else runs in eval mode and stays as it was. Layers whose parameters are frozen keep their statistics.
    """
    assert run.model is not None
    layers = [layer for layer in run.model.modules() if isinstance(layer, _BatchNorm) and _is_calibrated(layer)]
    momenta = [layer.momentum for layer in layers]
    try:
        with torch.no_grad(), run.topology.preserved([run.model], training=False), run.capture.watching():
            for layer in layers:
                layer.train().reset_running_stats()
                layer.momentum = None  # a plain mean over the batches
            for item in loader:
                forward(run.model, item)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    _average_over_ranks(run, layers)


def _average_over_ranks(run: Run, layers: Sequence[_BatchNorm]) -> None:
    counts = run.ranks.sum([layer.num_batches_tracked for layer in layers])  # type: ignore[misc]
    for name in ("running_mean", "running_var"):
        local = [getattr(layer, name) * layer.num_batches_tracked for layer in layers]
        for layer, total, count in zip(layers, run.ranks.sum(local), counts, strict=True):
            getattr(layer, name).copy_(total / count)
    for layer, count in zip(layers, counts, strict=True):
        layer.num_batches_tracked.copy_(count)  # type: ignore[union-attr]


def _is_calibrated(layer: nn.Module) -> bool:
    parameters = list(layer.parameters(recurse=False))
    return bool(layer.track_running_stats) and (not parameters or any(p.requires_grad for p in parameters))


def _parts(loader: Any) -> list[Any]:
    """Return a loader, its samplers, and the sampler under its batch sampler, as far as they exist."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = [loader, batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None)]
    return [part for part in parts if part is not None]
