"""A step that has not happened yet."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs
from torch import Tensor

from modbalance.method import Method
from modbalance.records import Step

Sums = dict[str, Tensor]


class Phase(enum.Enum):
    """How far a step has come."""

    GATHERING = "criterion calls add statistics"
    COMPLETE = "a GradScaler is about to take it or skip it"
    MODULATED = "gradients are modulated, nothing is committed"


@attrs.define(eq=False)
class Pending:
    """A step that has not happened yet: how many batches it gathered, their statistics by method, its records."""

    phase: Phase = Phase.GATHERING
    batches: int = 0
    sums: dict[str, Sums] = attrs.field(factory=dict)
    steps: list[Step] = attrs.field(factory=list)

    def add(self, method: Method, observed: Mapping[str, Tensor]) -> None:
        """Add the named sums of one batch."""
        sums = self.sums.setdefault(method.name, {})
        for name, value in observed.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
