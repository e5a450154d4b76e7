"""Data loaders whose batches depend on seed, epoch and position only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipe_common.data.cache.feed import CachedDataset
from recipe_common.data.samples.sampler import ResumableBatchSampler
from recipe_common.recipe import Data
from recipe_common.settings.shared import OptimisationSettings, Settings
from recipe_common.training.interrupt import leave_signals_to_parent
from recipe_common.training.precision import Precision
from recipe_common.training.ranks import ALONE, Ranks

Loader = DataLoader[Any]
T = TypeVar("T")


@attrs.frozen
class Loaders:
    """The loaders of one run; those of training give each rank its share of the batches.

    Attributes:
        sampler: Position of the training loader.
        train: Shuffled training batches from that position to the end of the epoch.
        train_in_order: Training batches of epoch 0, for methods that read the data between epochs.
        val: Validation batches; those of the test split if there is no validation split.
        test: Test batches.
        val_share: The share of this rank in the validation batches, for such methods.
    """

    sampler: ResumableBatchSampler
    train: Loader
    train_in_order: Loader
    val: Loader
    test: Loader
    val_share: Loader


class DeviceLoader(Loader):
    """Loader that finishes on a device the batches that a `CachedDataset` has packed.

    Args:
        dataset: Dataset with the batches.
        device: Device on which they are finished.
        **settings: Further arguments of ``torch.utils.data.DataLoader``.
    """

    def __init__(self, dataset: CachedDataset, device: torch.device, **settings: Any) -> None:
        super().__init__(dataset, collate_fn=dataset.pack_batch, **settings)
        self.device = device

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises its own iterator
        for batch in super().__iter__():
            assert isinstance(self.dataset, CachedDataset)
            yield self.dataset.finish_packed(to_device(batch, self.device))


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with every tensor in its lists and mappings moved to ``device``; other values stay as they are."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    return [to_device(value, device) for value in batch] if isinstance(batch, list | tuple) else batch


def build_loaders(settings: Settings[Any], data: Data, precision: Precision, ranks: Ranks = ALONE) -> Loaders:
    """Return the loaders of one run over ``data``."""
    pin_memory = precision.device.type == "cuda"

    def loader(dataset: Dataset[Any], sampler: ResumableBatchSampler) -> Loader:
        options: dict[str, Any] = {
            "batch_sampler": sampler,
            "num_workers": settings.machine.workers,
            "persistent_workers": settings.machine.workers > 0,
            "pin_memory": pin_memory,
            "worker_init_fn": leave_signals_to_parent,
            # Without an own generator every iterator draws from the global one, and a resumed run would diverge.
            "generator": torch.Generator(),
        }
        if not isinstance(dataset, CachedDataset):
            return DataLoader(dataset, collate_fn=data.collate, **options)
        if _transforms_on_device(dataset, precision):
            return DeviceLoader(dataset, precision.device, **options)
        return DataLoader(dataset, collate_fn=dataset.finish_batch, **options)

    def in_order(dataset: Any, ranks: Ranks = ALONE) -> Loader:
        drop_last = settings.data.drop_last == "both"
        return loader(dataset, _sampler(dataset, settings.optimisation, ranks, shuffle=False, drop_last=drop_last))

    sampler = _sampler(
        data.train, settings.optimisation, ranks, shuffle=True, drop_last=settings.data.drop_last != "none"
    )
    train = loader(data.train, sampler)
    split = data.val if settings.data.validation else data.test
    val = in_order(split)
    val_share = val if ranks.is_alone else in_order(split, ranks)
    return Loaders(sampler, train, in_order(data.train, ranks), val, in_order(data.test), val_share)


def _transforms_on_device(dataset: CachedDataset, precision: Precision) -> bool:
    """Return whether batches from a cache are finished on the device; default: on CUDA, where that is faster."""
    is_wanted = dataset.device_transforms
    return precision.device.type == "cuda" if is_wanted is None else is_wanted


def _sampler(
    dataset: Any, settings: OptimisationSettings, ranks: Ranks, *, shuffle: bool, drop_last: bool
) -> ResumableBatchSampler:
    size = len(dataset)
    # A set smaller than a batch would be empty.
    drop_last = drop_last and size >= settings.batch_size
    return ResumableBatchSampler(
        size,
        settings.batch_size // ranks.size,
        seed=settings.seed,
        shuffle=shuffle,
        drop_last=drop_last,
        rank=ranks.rank,
        world_size=ranks.size,
    )


def batches_per_epoch(loader: Loader, limit: int | None) -> int:
    """Return the number of batches of ``loader`` in an epoch; ``limit`` is ``--limit-batches``."""
    total = len(loader)
    return total if limit is None else min(total, limit)


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` consecutive items; the last one may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
