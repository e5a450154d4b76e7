"""Installed methods that declare that they suit what was found, with their reasons and costs."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from modbalance._plugins import list_methods


@attrs.frozen
class Suggestion:
    """A method that its paper proposes for a finding.

    Attributes:
        method: Its name.
        finding: The finding.
        reason: One sentence of the method on it.
        cost: Time of a step over that of the bare optimizer, as the method declares it; ``None``: not measured.
    """

    method: str
    finding: str
    reason: str
    cost: float | None


def suggest_methods(findings: Collection[str], modalities: int) -> tuple[Suggestion, ...]:
    """Return the methods that suit any finding and are defined for this number of modalities, cheapest first."""
    found = [
        Suggestion(listing.name, finding, listing.method.suits[finding], listing.method.step_cost)
        for listing in list_methods()
        if listing.method is not None and listing.method.min_modalities <= modalities
        for finding in findings
        if finding in listing.method.suits
    ]
    return tuple(sorted(found, key=lambda each: (each.cost is None, each.cost or 0.0, each.method)))
