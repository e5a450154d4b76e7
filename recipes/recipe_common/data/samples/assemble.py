"""From a split and the sources of its samples to the data of a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from recipe_common.data.cache.feed import feed
from recipe_common.data.samples.sources import SampleFinder, Source
from recipe_common.data.samples.splits import Split
from recipe_common.recipe import Data


def open_samples(
    args: argparse.Namespace,
    root: Path,
    classes: tuple[str, ...],
    split: Split,
    sources: tuple[Source, ...],
    lines: Sequence[str],
) -> Data:
    """Find and open the samples of a split.

    Args:
        args: With the flags of `add_feed_arguments`, if samples can be kept in a cache.
        root: Of the data.
        classes: Class names in the order of their indices.
        split: Which samples there should be.
        sources: One per modality.
        lines: What the summary of the data begins with.

    Raises:
        RecipeError: If too few samples of a part are there, or if the cache cannot be built or read.
    """
    parts = SampleFinder(classes, sources, args.min_found, args.skip_bad).read(split)
    opened = feed(args, root, parts, sources)
    return Data(
        train=opened(parts.train, training=True),
        val=opened(parts.val, training=False),
        test=opened(parts.test, training=False),
        classes=classes,
        modalities=tuple(source.modality for source in sources),
        synthetic=args.data_root is None,
        summary=(*lines, *parts.summary),
        skipped=parts.skipped,
    )
