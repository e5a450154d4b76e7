"""How samples reach the model: read from their files one by one, or from a cache of decoded ones, batch by batch."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from common.arguments import positive_int
from common.data.cache import Cache, entries_of, open_cache
from common.data.compact import Compact
from common.data.media import Parts, Sample, SampleDataset, Source, one_thread
from common.data.sampler import Key
from common.data.seeding import derived_seed

CACHE_SIZE = 256
"""Default of --cache-size: what papers scale videos to before they take random crops of 224 pixels."""
AUTO = "auto"

Open = Callable[..., Dataset[tuple[Any, ...]]]


def add_feed_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of recipes whose samples are files."""
    add = parser.add_argument_group("feed").add_argument
    add("--cache", metavar="DIR", help="decode the data once into this folder; auto: beside the data")
    add(
        "--cache-size",
        type=positive_int,
        metavar="PIXELS",
        help=f"shorter side of cached pictures, default {CACHE_SIZE}",
    )
    add("--cache-workers", type=positive_int, metavar="N", help="processes that build the cache; default: one per core")
    add(
        "--device-transforms",
        action=argparse.BooleanOptionalAction,
        help="with --cache: spectrograms, crops and normalisation on the device; default: on CUDA",
    )


def feed(args: argparse.Namespace, root: Path, parts: Parts, sources: Sequence[Source]) -> Open:
    """Return what opens the samples of one part: `opened(samples, training=...)`.

    Args:
        args: With the flags of `add_feed_arguments`.
        root: Of the data.
        parts: All samples; a cache keeps them whatever part they are in.
        sources: One per modality.

    Raises:
        RecipeError: If the cache cannot be built or read.
    """
    if args.cache is None:
        return partial(SampleDataset, sources=sources, seed=args.seed)
    folder = beside(root) if args.cache == AUTO else Path(args.cache)
    samples = (*parts.train, *parts.val, *parts.test)
    workers = args.cache_workers or os.cpu_count() or 1
    short_side = args.cache_size or CACHE_SIZE
    ways = tuple(
        _way(folder, source, [(sample, sample.media[index]) for sample in samples], short_side, workers)
        for index, source in enumerate(sources)
    )
    return partial(CachedDataset, ways=ways, seed=args.seed)


def beside(root: Path) -> Path:
    """Return the folder of the cache that `--cache auto` means."""
    root = root.resolve()
    return root.with_name(f"{root.name}-cache")


class Way(Protocol):
    """How the tensors of one modality come about; see `Compact`."""

    def find(self, sample: Sample) -> Any:
        """Return where a sample is."""

    def pick(self, place: Any, media: Any, seed: int | None) -> Any:
        """Return what the batch needs of a sample."""

    def finish(self, picked: Sequence[Any]) -> Any:
        """Return the tensor of a batch."""

    def pack(self, picked: Sequence[Any]) -> Any:
        """Return what is sent to the device."""

    def finish_packed(self, packed: Any) -> Any:
        """Return the tensor of a batch on the device."""


@attrs.frozen
class CachedWay:
    """From the cache.

    Attributes:
        compact: Of this modality.
        cache: What is decoded.
        places: Where samples are in the cache.
    """

    compact: Compact
    cache: Cache
    places: dict[Sample, tuple[int, int]]

    def find(self, sample: Sample) -> tuple[int, int]:
        """Return its place in the cache."""
        return self.places[sample]

    def pick(self, place: tuple[int, int], media: Any, seed: int | None) -> Any:
        """Return what the batch needs of a sample."""
        return self.compact.pick(self.cache[place], media, seed)

    def finish(self, picked: Sequence[Any]) -> Any:
        """Return the tensor of a batch."""
        return self.compact.finish(picked)

    def pack(self, picked: Sequence[Any]) -> Any:
        """Return what is sent to the device."""
        return self.compact.pack(picked)

    def finish_packed(self, packed: Any) -> Any:
        """Return the tensor of a batch on the device."""
        return self.compact.finish_packed(tuple(packed))


@attrs.frozen
class PlainWay:
    """From the files: a modality that cannot be kept."""

    source: Source

    def find(self, sample: Sample) -> None:
        """Say nothing: the media of a sample tell it."""

    def pick(self, place: None, media: Any, seed: int | None) -> Any:
        """Return the tensors of a sample."""
        return self.source.read(media, seed=seed)

    def finish(self, picked: Sequence[Any]) -> Any:
        """Return the tensors of a batch."""
        return default_collate(list(picked))

    def pack(self, picked: Sequence[Any]) -> Any:
        """Return the tensors of a batch."""
        return default_collate(list(picked))

    def finish_packed(self, packed: Any) -> Any:
        """Return them as they are."""
        return packed


@attrs.frozen
class Picked:
    """What a batch needs: for each modality that of each sample, and the labels."""

    modalities: tuple[list[Any], ...]
    labels: list[int]


class CachedDataset(Dataset[tuple[Any, ...]]):
    """Gives the samples of `SampleDataset`, by (epoch, index), from a cache.

    A DataLoader takes whole batches: its `collate_fn` is `finish_batch`, or `pack_batch`, and `finish_packed` is then
    called on the device.

    Args:
        samples: The samples.
        ways: One per modality.
        training: Whether to augment.
        seed: Of the augmentation.
    """

    def __init__(self, samples: Sequence[Sample], ways: Sequence[Way], *, training: bool, seed: int) -> None:
        self.samples, self.ways = tuple(samples), tuple(ways)
        self.training, self.seed = training, seed
        self.places = [[way.find(sample) for sample in self.samples] for way in self.ways]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> tuple[Any, ...]:
        """Return one tensor per modality and the label of one sample."""
        *tensors, labels = self.finish_batch(self.__getitems__([key]))
        return (*(_first(tensor) for tensor in tensors), int(labels[0]))

    def __getitems__(self, keys: Sequence[Key]) -> Picked:
        """Choose what a batch needs."""
        indices = [index for _, index in keys]
        seeds = [derived_seed(self.seed, *key) if self.training else None for key in keys]
        modalities = tuple(
            [
                way.pick(self.places[number][index], self.samples[index].media[number], seed)
                for index, seed in zip(indices, seeds, strict=True)
            ]
            for number, way in enumerate(self.ways)
        )
        return Picked(modalities, [self.samples[index].label for index in indices])

    def finish_batch(self, batch: Any) -> list[Any]:
        """Return the tensors of a batch, which `__getitems__` has picked, and its labels."""
        with one_thread():
            tensors = [way.finish(picked) for way, picked in zip(self.ways, batch.modalities, strict=True)]
        return [*tensors, torch.tensor(batch.labels)]

    def pack_batch(self, batch: Any) -> list[Any]:
        """Return what of a picked batch is sent to the device: bytes and 16-bit samples instead of float32."""
        packed = [way.pack(picked) for way, picked in zip(self.ways, batch.modalities, strict=True)]
        return [*packed, torch.tensor(batch.labels)]

    def finish_packed(self, batch: Sequence[Any]) -> list[Any]:
        """Return the tensors of a batch that `pack_batch` has made, and its labels, on the device of the batch."""
        *packed, labels = batch
        return [*(way.finish_packed(each) for way, each in zip(self.ways, packed, strict=True)), labels]


def _way(folder: Path, source: Source, samples: Sequence[tuple[Sample, Any]], short_side: int, workers: int) -> Way:
    if source.compact is None:
        return PlainWay(source)
    compact = source.compact(short_side)
    entries = entries_of([(sample.name, media) for sample, media in samples], compact)
    cache = open_cache(folder, source.modality, compact, entries, workers=workers)
    places = {sample: cache.find(entry) for (sample, _), entry in zip(samples, entries, strict=True)}
    return CachedWay(compact, cache, places)


def _first(batch: Any) -> Any:
    """Return the first sample of a batch of one, or several, tensors."""
    return batch[0] if isinstance(batch, Tensor) else [_first(each) for each in batch]
