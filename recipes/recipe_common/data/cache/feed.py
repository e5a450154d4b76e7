"""How samples reach the model: read from their files one by one, or from a cache of decoded ones, batch by batch."""

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
"""Default of --cache-size: what papers scale videos to before they take random crops of 224 pixels."""
AUTO = "auto"

Open = Callable[..., Dataset[tuple[Any, ...]]]


@attrs.frozen(kw_only=True)
class FeedSettings:
    """Settings of recipes whose samples are files."""

    title: ClassVar[str] = "feed"

    cache: str | None = flag(
        None, "decode the data once into this folder; auto: beside the data", metavar="DIR", is_identity=False
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
    """Return what opens the samples of one part: `opened(samples, training=...)`.

    Args:
        settings: How; None for samples that no cache can keep.
        root: Of the data.
        parts: All samples; a cache keeps them whatever part they are in.
        sources: One per modality.
        seed: Of the augmentation.

    Raises:
        RecipeError: If the cache cannot be built or read.
    """
    if settings is None or settings.cache is None:
        return partial(SampleDataset, sources=sources, seed=seed)
    folder = beside(root) if settings.cache == AUTO else Path(settings.cache)
    samples = (*parts.train, *parts.val, *parts.test)
    workers = settings.cache_workers or os.cpu_count() or 1
    short_side = settings.cache_size or CACHE_SIZE
    kept = tuple(
        _kept(folder, source, [(sample, sample.media[index]) for sample in samples], short_side, workers)
        for index, source in enumerate(sources)
    )
    return partial(CachedDataset, kept=kept, seed=seed, device_transforms=settings.device_transforms)


def beside(root: Path) -> Path:
    """Return the folder of the cache that `--cache auto` means."""
    root = root.resolve()
    return root.with_name(f"{root.name}-cache")


@attrs.frozen
class CachedModality:
    """What the cache holds of one modality.

    Attributes:
        pipeline: Makes tensors of it.
        cache: What is decoded.
        places: Where samples are in the cache.
    """

    pipeline: Pipeline
    cache: Store
    places: dict[Sample, Place]


@attrs.frozen
class PickedBatch:
    """What a batch needs: for each modality that of each sample, and the labels."""

    modalities: tuple[list[Any], ...]
    labels: list[int]


class CachedDataset(Dataset[tuple[Any, ...]]):
    """Gives the samples of `SampleDataset`, by (epoch, index), from a cache.

    A DataLoader takes whole batches: its `collate_fn` is `finish_batch`, or `pack_batch`, and `finish_packed` is then
    called on the device.

    Args:
        samples: The samples.
        kept: Of each modality.
        training: Whether to augment.
        seed: Of the augmentation.
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
        """Choose what a batch needs."""
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
        """Return the tensors of a batch, which `__getitems__` has picked, and its labels."""
        with one_thread():
            tensors = [each.pipeline.finish(picked) for each, picked in zip(self.kept, batch.modalities, strict=True)]
        return [*tensors, torch.tensor(batch.labels)]

    def pack_batch(self, batch: Any) -> list[Any]:
        """Return what of a picked batch is sent to the device: bytes and 16-bit samples instead of float32."""
        packed = [each.pipeline.pack(picked) for each, picked in zip(self.kept, batch.modalities, strict=True)]
        return [*packed, torch.tensor(batch.labels)]

    def finish_packed(self, batch: Sequence[Any]) -> list[Any]:
        """Return the tensors of a batch that `pack_batch` has made, and its labels, on the device of the batch."""
        *packed, labels = batch
        tensors = [each.pipeline.finish_packed(tuple(sent)) for each, sent in zip(self.kept, packed, strict=True)]
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
