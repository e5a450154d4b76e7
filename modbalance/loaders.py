"""Loaders between epochs: samples gathered over ranks, random states kept, batch norm statistics estimated anew."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DistributedSampler

from modbalance._model.rerun import preserved
from modbalance.context import Forwarder, Run

__all__ = ["gather_samples", "recalibrate_batch_norm", "rng_kept"]


def gather_samples(run: Run, loader: Any, columns: Sequence[Tensor]) -> list[Tensor]:
    """Return the samples that all ranks drew from a loader, each sample once.

    A `DistributedSampler` deals samples out in turn: row k of rank r is number k * ranks + r of one order for all
    ranks, in which the rows are returned. Numbers beyond the size of the dataset repeat samples, to give each rank
    as many, and are dropped. Of any other loader, each rank is taken to hold a share of its own, except where all
    ranks hold the very same rows: these count once.

    Args:
        run: The run.
        loader: The loader that the rows were drawn from, alike on all ranks.
        columns: Tensors with one row per sample, in the order of this rank's loader; a rank may have no rows.
    """
    sampler = _distributed_sampler(loader)
    gathered = [run.gather_rows(column) for column in columns]
    if sampler is not None:
        number = run.gather_rows(torch.arange(len(columns[0])) * sampler.num_replicas + sampler.rank)
        order = number.argsort()
        kept = order[number[order] < len(sampler.dataset)]  # type: ignore[arg-type]
        return [column[kept] for column in gathered]
    counts = run.gather_rows(torch.tensor([len(columns[0])])).tolist()
    shares = [torch.split(column, counts) for column in gathered]
    are_copies = all(torch.equal(first, other) for first, *others in shares for other in others)
    return [share[0] for share in shares] if are_copies else gathered


@contextmanager
def rng_kept(loaders: Sequence[Any], device: torch.device) -> Iterator[None]:
    """Restore the random states of torch, numpy and Python after the body, which draws from loaders.

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
    Layers that are synchronized over ranks use as many batches as the rank with the fewest has.
    """
    assert run.model is not None
    layers = [layer for layer in run.model.modules() if isinstance(layer, _BatchNorm) and _is_calibrated(layer)]
    momenta = [layer.momentum for layer in layers]
    try:
        with torch.no_grad(), preserved([run.model], training=False), run._training.watch.separately():
            for layer in layers:
                layer.train().reset_running_stats()
                layer.momentum = None  # a plain mean over the batches
            is_joint = any(isinstance(layer, nn.SyncBatchNorm) for layer in layers)
            for item in _in_step(run, loader) if is_joint else loader:
                forward(run.model, item)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    _average_over_ranks(run, layers)


def _in_step(run: Run, loader: Iterable[Any]) -> Iterator[Any]:
    """Yield batches as long as every rank has one, since synchronized layers wait for all ranks."""
    drawn = iter(loader)
    while run._training.ranks.minimum(int((item := next(drawn, None)) is not None), run.device):
        yield item


def _average_over_ranks(run: Run, layers: Sequence[_BatchNorm]) -> None:
    counts = run.sums([layer.num_batches_tracked for layer in layers])  # type: ignore[misc]
    for name in ("running_mean", "running_var"):
        local = [getattr(layer, name) * layer.num_batches_tracked for layer in layers]
        for layer, total, count in zip(layers, run.sums(local), counts, strict=True):
            getattr(layer, name).copy_(total / count)
    for layer, count in zip(layers, counts, strict=True):
        if not isinstance(layer, nn.SyncBatchNorm):  # whose batches are those of all ranks already
            layer.num_batches_tracked.copy_(count)  # type: ignore[union-attr]


def _is_calibrated(layer: nn.Module) -> bool:
    parameters = list(layer.parameters(recurse=False))
    return bool(layer.track_running_stats) and (not parameters or any(p.requires_grad for p in parameters))


def _distributed_sampler(loader: Any) -> DistributedSampler[Any] | None:
    return next((part for part in _parts(loader) if isinstance(part, DistributedSampler)), None)


def _parts(loader: Any) -> list[Any]:
    """Return a loader, its samplers, and the sampler under its batch sampler, as far as they exist."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = [loader, batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None)]
    return [part for part in parts if part is not None]
