"""Dataset of samples on disk: finding the files of each modality, reading them, leaving out unreadable ones."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch.utils.data import Dataset

from recipe_common.data.cache.headers import Header
from recipe_common.data.readers.non_files import kinds_in
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sampler import Key
from recipe_common.data.samples.seeding import derived_seed
from recipe_common.data.samples.splits import Split
from recipe_common.errors import RecipeError, message

SHOWN = 10
"""Unreadable samples, or classes without samples, that are named one by one."""


@attrs.frozen
class Source:
    """One modality on disk.

    Args:
        modality: Name of the modality.
        what: Noun for the file or feature of one sample, such as `wav file`.
        where: Folder or file of the modality, for messages.
        find: From a row to its media: the argument of `read` (a path, several, ...), or None if it is absent.
        read: `read(media, seed=...)` gives the tensor. Seed None: as in evaluation, always the same; else as in
            training, a function of the seed.
        check: Decodes the media whole; raises a RecipeError if that fails.
        pipeline: From the length in pixels to which the shorter side of pictures may be scaled down, to the
            `Pipeline` (`recipe_common.data.cache.pipelines`) of a cache; None if the modality cannot be cached. With
            the same media and seed its tensors are those of `read`, but for that scaling.
        header: Reader of the headers of the files; None if there are none to be checked before the training.
    """

    modality: str
    what: str
    where: str
    find: Callable[[Row], Any]
    read: Callable[..., Any]
    check: Callable[[Any], object]
    pipeline: Callable[[int], Any] | None = None
    header: Header | None = None


@attrs.frozen
class Sample:
    """One sample on disk.

    Args:
        name: Name in the list.
        label: Class index.
        media: Media of each modality, as its source found them.
    """

    name: str
    label: int
    media: tuple[Any, ...]


class SampleDataset(Dataset[tuple[Any, ...]]):
    """Samples on disk, read by (epoch, index).

    A training sample depends on (seed, epoch, index) alone: not on the order of reading, the number of workers, or
    random numbers drawn elsewhere. Evaluation does not depend on the epoch either.

    Args:
        samples: The samples.
        sources: One per modality, in the order of `Sample.media`.
        training: Whether to augment.
        seed: Seed of the augmentation.
    """

    def __init__(self, samples: Sequence[Sample], sources: Sequence[Source], *, training: bool, seed: int) -> None:
        self.samples, self.sources = tuple(samples), tuple(sources)
        self.training, self.seed = training, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> tuple[Any, ...]:
        """Return one tensor per modality and the label of the sample `key[1]`, augmented for epoch `key[0]`."""
        epoch, index = key
        sample = self.samples[index]
        seed = derived_seed(self.seed, epoch, index) if self.training else None
        with one_thread():
            read = [source.read(media, seed=seed) for source, media in zip(self.sources, sample.media, strict=True)]
        return (*read, sample.label)


@attrs.frozen
class SplitSamples:
    """Samples of each part, lines for the summary of the data, and a line for each sample left out."""

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    summary: tuple[str, ...]
    skipped: tuple[str, ...]


@attrs.frozen
class SampleFinder:
    """Finds the samples of a split on disk.

    Args:
        classes: Class names in the order of their indices.
        sources: One per modality.
        min_found: Share of each part, 0 to 1, that must be on disk.
        skip_bad: Whether to decode every file now and leave out samples with an unreadable one.
    """

    classes: tuple[str, ...]
    sources: tuple[Source, ...]
    min_found: float
    skip_bad: bool

    def read(self, split: Split) -> SplitSamples:
        """Find the samples of all parts.

        Raises:
            RecipeError: If too few samples of a part are on disk.
        """
        samples: dict[str, tuple[Sample, ...]] = {}
        summary: list[str] = []
        skipped: list[str] = []
        for part in ("train", "val", "test"):
            samples[part], lines, left_out = self._part(part, getattr(split, part))
            summary += lines
            skipped += left_out
        summary += self._empty_classes(samples["train"])
        return SplitSamples(**samples, summary=tuple(summary), skipped=tuple(skipped))

    def _part(self, part: str, rows: Sequence[Row]) -> tuple[tuple[Sample, ...], list[str], list[str]]:
        found, absent = self._find(rows)
        good, bad = drop_unreadable(found, self.sources) if self.skip_bad else (found, ())
        line = self._counts(part, len(rows), len(good), absent, bad)
        if rows and (not good or len(good) < self.min_found * len(rows)):
            places = " and ".join(dict.fromkeys(source.where for source in self.sources))
            raise RecipeError(
                f"{places} should hold at least {self.min_found:.0%} of the listed samples",
                found=line,
                fix=next((kind.fix for kind, _ in kinds_in(bad).most_common(1)), "complete the data")
                + ", or lower `--min-found`",
            )
        more = [f"  ... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        lines = [line, *(f"  skipped {fault}" for fault in bad[:SHOWN]), *more]
        left_out = [f"{name}: no {source.what}" for source in self.sources for name in absent[source.modality]]
        return good, lines, [f"{part}: {reason}" for reason in [*left_out, *bad]]

    def _find(self, rows: Sequence[Row]) -> tuple[tuple[Sample, ...], dict[str, list[str]]]:
        absent: dict[str, list[str]] = {source.modality: [] for source in self.sources}
        samples = []
        for row in rows:
            media = tuple(source.find(row) for source in self.sources)
            for source, found in zip(self.sources, media, strict=True):
                if found is None:
                    absent[source.modality].append(row.name)
            if None not in media:
                samples.append(Sample(row.name, self.classes.index(row.label), media))
        return tuple(samples), absent

    def _counts(self, part: str, listed: int, found: int, absent: dict[str, list[str]], bad: Sequence[str]) -> str:
        line = f"{part}: {found:,} of {listed:,} listed samples"
        for source in self.sources:
            names = absent[source.modality]
            if names:
                line += f"; {len(names):,} without {source.what}, such as {names[0]}"
        kinds = "".join(f", {count:,} of them {kind.plural}" for kind, count in kinds_in(bad).most_common())
        return line + (f"; {len(bad):,} unreadable{kinds}" if bad else "")

    def _empty_classes(self, train: Sequence[Sample]) -> list[str]:
        present = {sample.label for sample in train}
        empty = [name for index, name in enumerate(self.classes) if index not in present]
        if not empty:
            return []
        more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
        return [
            f"{len(empty)} of {len(self.classes)} classes have no training sample: {', '.join(empty[:SHOWN])}{more}"
        ]


def drop_unreadable(samples: Sequence[Sample], sources: Sequence[Source]) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Decode every file of every sample once.

    Returns:
        The samples without a bad file, and one line for each of the others.
    """

    def fault(sample: Sample) -> str | None:
        try:
            for source, media in zip(sources, sample.media, strict=True):
                source.check(media)
        except RecipeError as error:
            return f"{sample.name}: {message(error)}"
        return None

    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(fault, samples))
    good = tuple(sample for sample, reason in zip(samples, faults, strict=True) if reason is None)
    return good, tuple(reason for reason in faults if reason is not None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch with one thread, as in DataLoader workers: another number may round a Fourier transform differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
