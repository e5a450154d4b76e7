"""Degree of imbalance, and the verdict on it; docs/diagnose.md defines both."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

DEGREE = 1 / 3
"""Degree from which a model is called imbalanced: one modality contributes twice as much as another."""
UTILISATION = 0.8
"""Part of its ceiling above chance below which a modality is called starved."""
STANDARD_ERRORS = 2.0
"""Differences of fewer standard errors are taken for chance."""
CONFLICT = -0.1
"""Cosine below which a conflict is reported; gradients conflict below 0 (Yu et al., NeurIPS 2020), noise apart."""


@attrs.frozen
class Verdict:
    """Conclusion of a diagnosis.

    Attributes:
        degree: Degree of imbalance, in [0, 1].
        is_imbalanced: Whether one modality contributes too little, or stays too far below its ceiling.
        starved: The modality that does; ``None`` where none does.
        reason: One sentence with the numbers.
        findings: Names of what was found: ``starved``, ``dominated``, ``conflict``.
    """

    degree: float
    is_imbalanced: bool
    starved: str | None
    reason: str
    findings: tuple[str, ...]


def degree_of(contribution: Mapping[str, float]) -> float:
    """Return (max - min) / (max + min) of the contributions, negative ones taken as 0; NaN where all are 0."""
    positive = [max(value, 0.0) for value in contribution.values()]
    total = max(positive) + min(positive)
    return (max(positive) - min(positive)) / total if total > 0 else math.nan


def utilisation(accuracy: float, ceiling: float, chance: float) -> float:
    """Return the part of its ceiling that a modality reaches, both above chance; NaN for a ceiling at chance."""
    return (accuracy - chance) / (ceiling - chance) if ceiling > chance else math.nan


def verdict_of(
    contribution: Mapping[str, float],
    error: float,
    used: Mapping[str, float],
    used_error: Mapping[str, float],
    cosine: float = math.nan,
) -> Verdict:
    """Return the verdict.

    Args:
        contribution: Shapley value by modality.
        error: Standard error of the difference between the largest and the smallest one.
        used: `utilisation` by modality, as far as ceilings are known.
        used_error: Its standard error.
        cosine: Smallest cosine of two gradients; NaN where none is known.
    """
    degree = degree_of(contribution)
    low, high = min(contribution, key=contribution.__getitem__), max(contribution, key=contribution.__getitem__)
    difference = contribution[high] - contribution[low]
    dominated = degree >= DEGREE and difference > STANDARD_ERRORS * error
    short = [name for name, u in used.items() if u + STANDARD_ERRORS * used_error[name] < UTILISATION]
    starved = min(short, key=used.__getitem__) if short else (low if dominated and low not in used else None)
    numbers = f"{low} contributes {contribution[low]:.3f} and {high} {contribution[high]:.3f}"
    if short and starved is not None:
        reason = f"{starved} alone reaches {used[starved]:.0%} of its ceiling above chance, less than {UTILISATION:.0%}"
    elif starved is not None:
        reason = f"{numbers}: twice as much or more, beyond {STANDARD_ERRORS:g} standard errors"
    elif dominated:
        reason = f"{numbers}, but {low} reaches {used[low]:.0%} of its ceiling: it is weak, and not starved"
    else:
        reason = f"{numbers}: less than twice as much, or within {STANDARD_ERRORS:g} standard errors"
    conflicts = cosine < CONFLICT
    if conflicts:
        reason += f"; gradients conflict, with a cosine of {cosine:+.2f}"
    flags = {"starved": starved is not None, "dominated": dominated, "conflict": conflicts}
    return Verdict(degree, starved is not None, starved, reason, tuple(name for name, found in flags.items() if found))
