"""Feeds samples to the model: from their files one by one, or from a cache of decoded samples batch by batch."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch.utils.data import Dataset

from recipe_common.arguments import positive_int
from recipe_common.data.cache.decoded import entries_of, open_cache
from recipe_common.data.cache.pipelines import Pipeline
from recipe_common.data.cache.store import Place, Store
from recipe_common.data.samples.sampler import Key
from recipe_common.data.samples.seeding import derived_seed
from recipe_common.data.samples.sources import Sample, SampleDataset, Source, SplitSamples, one_thread
from recipe_common.settings.declaration import flag

CACHE_SIZE = 256
"""Default of --cache-size in pixels: the size of videos in the papers, before random crops of 224 pixels."""
AUTO = "auto"

Open = Callable[..., Dataset[tuple[Any, ...]]]


@attrs.frozen(kw_only=True)
class FeedSettings:
    """Settings of the cache, for recipes whose samples are files."""

    title: ClassVar[str] = "feed"

    cache: str | None = flag(
        None, "folder for the data, decoded once; auto: a folder beside the data", metavar="DIR", is_identity=False
    )
    cache_size: int | None = flag(
        None, f"shorter side of cached pictures, default {CACHE_SIZE}", number=positive_int, metavar="PIXELS"
    )
    cache_workers: int | None = flag(
        None,
        "processes that build the cache; default: one per core",
        number=positive_int,
        metavar="N",
        is_identity=False,
    )
    device_transforms: bool | None = flag(
        None, "with --cache: spectrograms, crops and normalisation on the device; default: on CUDA"
    )


def feed(
    settings: FeedSettings | None, root: Path, parts: SplitSamples, sources: Sequence[Source], *, seed: int
) -> Open:
    """Return the function that opens the samples of one part: `opened(samples, training=...)`.

    Args:
        settings: Settings of the cache; None for samples that cannot be kept in one.
        root: Folder of the dataset.
        parts: The samples of all parts, which a cache keeps together.
        sources: One per modality.
        seed: Seed of the augmentation.

    Raises:
        RecipeError: If the cache cannot be built or read.
    """
    if settings is None or settings.cache is None:
        return partial(SampleDataset, sources=sources, seed=seed)
    folder = cache_folder(settings, root)
    samples = (*parts.train, *parts.val, *parts.test)
    workers = settings.cache_workers or os.cpu_count() or 1
    short_side = settings.cache_size or CACHE_SIZE
    kept = tuple(
        _kept(folder, source, [(sample, sample.media[index]) for sample in samples], short_side, workers)
        for index, source in enumerate(sources)
    )
    return partial(CachedDataset, kept=kept, seed=seed, device_transforms=settings.device_transforms)


def cache_folder(settings: FeedSettings | None, root: Path) -> Path:
    """Return the folder of the cache; that of `--cache auto` if none is given."""
    named = None if settings is None else settings.cache
    return beside(root) if named in (None, AUTO) else Path(named)


def beside(root: Path) -> Path:
    """Return the folder of the cache for `--cache auto`."""
    root = root.resolve()
    return root.with_name(f"{root.name}-cache")


@attrs.frozen
class CachedModality:
    """Cached samples of one modality.

    Attributes:
        pipeline: Pipeline from decoded samples to the tensors of a batch.
        cache: The decoded samples.
        places: Places of the samples in the cache.
    """

    pipeline: Pipeline
    cache: Store
    places: dict[Sample, Place]


@attrs.frozen
class PickedBatch:
    """Parts of decoded samples for one batch: a list of samples for each modality, and the labels."""

    modalities: tuple[list[Any], ...]
    labels: list[int]


class CachedDataset(Dataset[tuple[Any, ...]]):
    """Samples of `SampleDataset`, read by (epoch, index) from a cache.

    A DataLoader takes whole batches: its `collate_fn` is `finish_batch`, or `pack_batch`, and `finish_packed` is then
    called on the device.

    Args:
        samples: The samples.
        kept: Cached samples of each modality.
        training: Whether to augment.
        seed: Seed of the augmentation.
        device_transforms: Whether batches are finished on the device; None: on CUDA.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        kept: Sequence[CachedModality],
        *,
        training: bool,
        seed: int,
        device_transforms: bool | None = None,
    ) -> None:
        self.samples, self.kept = tuple(samples), tuple(kept)
        self.training, self.seed, self.device_transforms = training, seed, device_transforms
        self.places = [[each.places[sample] for sample in self.samples] for each in self.kept]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> tuple[Any, ...]:
        """Return one tensor per modality and the label of one sample."""
        *tensors, labels = self.finish_batch(self.__getitems__([key]))
        return (*(tensor[0] for tensor in tensors), int(labels[0]))

    def __getitems__(self, keys: Sequence[Key]) -> PickedBatch:
        """Pick the parts of decoded samples for one batch."""
        indices = [index for _, index in keys]
        seeds = [derived_seed(self.seed, *key) if self.training else None for key in keys]
        modalities = tuple(
            [
                each.pipeline.pick(each.cache[self.places[number][index]], self.samples[index].media[number], seed)
                for index, seed in zip(indices, seeds, strict=True)
            ]
            for number, each in enumerate(self.kept)
        )
        return PickedBatch(modalities, [self.samples[index].label for index in indices])

    def finish_batch(self, batch: Any) -> list[Any]:
        """Return the tensors and the labels of a batch from `__getitems__`."""
        with one_thread():
            tensors = [each.pipeline.finish(picked) for each, picked in zip(self.kept, batch.modalities, strict=True)]
        return [*tensors, torch.tensor(batch.labels)]

    def pack_batch(self, batch: Any) -> list[Any]:
        """Return a picked batch as it is sent to the device: bytes and 16-bit samples instead of float32."""
        packed = [each.pipeline.pack(picked) for each, picked in zip(self.kept, batch.modalities, strict=True)]
        return [*packed, torch.tensor(batch.labels)]

    def finish_packed(self, batch: Sequence[Any]) -> list[Any]:
        """Return the tensors and the labels of a batch from `pack_batch`, on the device of that batch."""
        *packed, labels = batch
        tensors = [each.pipeline.finish_packed(tuple(parts)) for each, parts in zip(self.kept, packed, strict=True)]
        return [*tensors, labels]


def _kept(
    folder: Path, source: Source, samples: Sequence[tuple[Sample, Any]], short_side: int, workers: int
) -> CachedModality:
    assert source.pipeline is not None, f"{source.modality} cannot be kept"
    pipeline = source.pipeline(short_side)
    entries = entries_of([(sample.name, media) for sample, media in samples], pipeline)
    cache = open_cache(folder, source.modality, pipeline, entries, workers=workers)
    places = {sample: cache.places[entry.key] for (sample, _), entry in zip(samples, entries, strict=True)}
    return CachedModality(pipeline, cache, places)
