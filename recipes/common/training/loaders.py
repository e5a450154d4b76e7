"""Data loaders whose batches depend on seed, epoch and position only."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import attrs
import torch
from torch.utils.data import DataLoader, Dataset

from common.data.sampler import ResumableBatchSampler
from common.training.interrupt import leave_signals_to_parent
from common.training.precision import Precision
from common.training.recipe import Data

Loader = DataLoader[Any]
T = TypeVar("T")


@attrs.frozen
class Loaders:
    """The loaders of one run.

    Attributes:
        sampler: Position of the training loader.
        train: Shuffled training batches from that position to the end of the epoch.
        train_in_order: Training batches of epoch 0, for methods that look at the data between epochs.
        val: Validation batches.
        test: Test batches.
    """

    sampler: ResumableBatchSampler
    train: Loader
    train_in_order: Loader
    val: Loader
    test: Loader


def build_loaders(args: argparse.Namespace, data: Data, precision: Precision) -> Loaders:
    """Return the loaders of one run over ``data``."""
    pin_memory = precision.device.type == "cuda"

    def loader(dataset: Dataset[Any], sampler: ResumableBatchSampler) -> Loader:
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=leave_signals_to_parent,
            # Without an own generator every iterator draws from the global one, and a resumed run would diverge.
            generator=torch.Generator(),
        )

    def in_order(dataset: Any) -> Loader:
        return loader(dataset, ResumableBatchSampler(len(dataset), args.batch_size, seed=args.seed, shuffle=False))

    size = len(data.train)  # type: ignore[arg-type]  # torch's Dataset does not declare the length that ours have
    sampler = ResumableBatchSampler(size, args.batch_size, seed=args.seed, shuffle=True)
    train = loader(data.train, sampler)
    return Loaders(sampler, train, in_order(data.train), in_order(data.val), in_order(data.test))


def batches_per_epoch(loader: Loader, limit: int | None) -> int:
    """Return how many batches of ``loader`` an epoch uses; ``limit`` is ``--limit-batches``."""
    total = len(loader)
    return total if limit is None else min(total, limit)


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` consecutive items; the last one may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
