"""Lines about samples with known faults, for the start of a run and the end of `prepare`."""

from collections.abc import Iterable, Mapping

from recipe_common.data.samples.sources import SHOWN

PAGE = "docs/recipes/known_faults.md"


def fault_lines(faults: Mapping[str, str], names: Iterable[str]) -> tuple[str, ...]:
    """Name the samples that have a known fault.

    Args:
        faults: Fault of each such sample of the dataset.
        names: Samples that are kept.

    Returns:
        A line with their number and one for each, the first `SHOWN`; none if there are no such samples.
    """
    found = sorted(set(names) & faults.keys())
    if not found:
        return ()
    what = "1 sample with a known fault is" if len(found) == 1 else f"{len(found)} samples with known faults are"
    more = [f"  ... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return (f"{what} kept, see {PAGE}:", *(f"  {name}: {faults[name]}" for name in found[:SHOWN]), *more)
