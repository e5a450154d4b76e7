"""Opens the samples of a split as the data of a run, from their files or through a cache."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe_common.data.cache.feed import FeedSettings, cache_folder, feed
from recipe_common.data.cache.headers import HeaderStore
from recipe_common.data.samples.faulty import fault_lines
from recipe_common.data.samples.headers import check_headers
from recipe_common.data.samples.sources import SampleFinder, Source
from recipe_common.data.samples.splits import Split
from recipe_common.recipe import Data
from recipe_common.settings.shared import Settings


def open_samples(
    settings: Settings[Any],
    root: Path,
    classes: tuple[str, ...],
    split: Split,
    sources: tuple[Source, ...],
    lines: Sequence[str],
    *,
    min_found: float,
    feeding: FeedSettings | None = None,
    faults: Mapping[str, str] | None = None,
) -> Data:
    """Find and open the samples of a split.

    Args:
        settings: Settings of the run.
        root: Folder of the dataset.
        classes: Class names in the order of their indices.
        split: The listed samples of each part.
        sources: One per modality.
        lines: First lines of the summary of the data.
        min_found: Share of the listed samples of a part that must be on disk, 0 to 1.
        feeding: Settings of the cache; None for samples that cannot be kept in one.
        faults: Known faults by the name of the sample; the summary names those that are kept.

    Raises:
        RecipeError: If too few samples of a part are on disk, if headers show unreadable files, which `--skip-bad`
            leaves out, or if the cache cannot be built or read.
    """
    parts = SampleFinder(classes, sources, min_found, settings.data.skip_bad).read(split)
    store = HeaderStore(root, cache_folder(feeding, root))
    if not settings.data.skip_bad:  # which has decoded all files by now
        check_headers(parts, sources, store)
    kept = (sample.name for part in (parts.train, parts.val, parts.test) for sample in part)
    opened = feed(feeding, root, parts, sources, seed=settings.optimisation.seed)
    return Data(
        train=opened(parts.train, training=True),
        val=opened(parts.val, training=False),
        test=opened(parts.test, training=False),
        classes=classes,
        modalities=tuple(source.modality for source in sources),
        synthetic=settings.data.is_synthetic,
        summary=(*lines, *parts.summary, *fault_lines(faults or {}, kept), *store.summary),
        skipped=parts.skipped,
    )
