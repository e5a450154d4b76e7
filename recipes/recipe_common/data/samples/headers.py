"""Check of the headers of all samples before the training."""

from collections.abc import Sequence

from recipe_common.data.cache.headers import HeaderStore
from recipe_common.data.samples.sources import Source, SplitSamples
from recipe_common.errors import RecipeError


def check_headers(parts: SplitSamples, sources: Sequence[Source], store: HeaderStore) -> None:
    """Read the headers of all files that the samples have.

    Args:
        parts: Samples of all parts.
        sources: One per modality.
        store: Facts of earlier runs.

    Raises:
        RecipeError: If a file is unreadable, as far as headers show it, with the number and the first of such files.
    """
    samples = (*parts.train, *parts.val, *parts.test)
    faults = [
        fault
        for index, source in enumerate(sources)
        if source.header is not None
        for fault in store.results(source.header, [sample.media[index] for sample in samples])
        if isinstance(fault, RecipeError)
    ]
    if faults:
        raise store.error(faults, len(samples), "samples")
