"""Statistics over seeds: means, standard deviations, bootstrap intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@attrs.frozen
class Spread:
    """Mean and spread of one quantity over seeds.

    Attributes:
        count: Number of values.
        mean: Mean of the values.
        std: Standard deviation (n - 1); None for one value, or if one is not finite.
        low: Lower end of the bootstrap 95 % interval of the mean; None if ``std`` is.
        high: Upper end of that interval; None if ``std`` is.
    """

    count: int
    mean: float
    std: float | None
    low: float | None
    high: float | None

    def overlaps(self, other: Spread) -> bool:
        """Return whether the intervals overlap; True as well if one has no interval or its ends are NaN."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return True
        return not (self.low > other.high or other.low > self.high)


def spread(values: Sequence[float]) -> Spread:
    """Summarize numbers, at least one.

    The interval is the percentile bootstrap over seeds (Efron, 1979), with fixed draws so that a table repeats. With
    few seeds it is narrower than it should be.
    """
    from scipy.stats import bootstrap

    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean())
    if len(numbers) == 1 or not np.isfinite(numbers).all():
        return Spread(len(numbers), mean, None, None, None)
    if np.ptp(numbers) == 0:
        return Spread(len(numbers), mean, 0.0, mean, mean)
    rng = np.random.default_rng(0)
    interval = bootstrap(
        (numbers,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=rng
    ).confidence_interval
    return Spread(len(numbers), mean, float(numbers.std(ddof=1)), float(interval.low), float(interval.high))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Spread | None:
    """Summarize differences to a baseline, seed by seed; None if they share no seed."""
    shared = sorted(values.keys() & baseline.keys())
    return spread([values[seed] - baseline[seed] for seed in shared]) if shared else None
