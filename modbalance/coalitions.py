"""Logits of every coalition of modalities, in two forms: whole passes of the model, or each encoder once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modbalance.backward import without_recomputation
from modbalance.errors import ConfigError, ModbalanceWarning
from modbalance.notices import depth_of_caller
from modbalance.unimodal import ABSTAIN, NO, YES, agreement

if TYPE_CHECKING:
    from modbalance.records import Batch

Coalition = tuple[str, ...]

FALLBACK = (
    "The logits of each coalition of modalities are computed by the whole model, since {reason}. Where encoders are "
    "independent, and `fusion=` turns their features into the logits, each encoder needs one pass for all coalitions. "
    "Pass `coalitions='full'` if this is what you expect."
)


def proper(modalities: Sequence[str]) -> Iterator[Coalition]:
    """Yield the coalitions of 1 to M - 1 modalities, each in fusion order."""
    for size in range(1, len(modalities)):
        yield from combinations(modalities, size)


def full(batch: Batch, *, training: bool = False) -> dict[Coalition, Tensor]:
    """Return the logits of the proper coalitions by one pass of the whole model for each, 2^M - 2 in all."""
    with nullcontext() if training else without_recomputation():
        return {S: batch.coalition_logits(S, training=training) for S in proper(batch.run.modalities)}


def factored(batch: Batch) -> dict[Coalition, Tensor]:
    """Return the logits of the proper coalitions in eval mode by one pass of each encoder, and one of a masked sample.

    Exact where no encoder sees another modality's input, and nothing but its own input tells samples apart.
    """
    with without_recomputation():
        seen, masked = batch.features_in_eval(), batch.features_in_eval(masked=True)
        absent = {name: masked[name].expand_as(feature) for name, feature in seen.items()}
        fuse = batch.run.topology.fuse
        return {
            S: fuse({i: seen[i] if i in S else absent[i] for i in seen}, batch.forward, training=False)
            for S in proper(batch.run.modalities)
        }


def choose(batch: Batch, expected: Mapping[Coalition, Tensor]) -> str:
    """Return "factored" if that form is exact, "full" with a warning if not, "auto" if this batch does not tell.

    Each encoder must be blind to the inputs of the others, and both forms must yield the same. Two host reads; all
    ranks agree.

    Args:
        batch: The batch to compare on.
        expected: What `full` returned for it.
    """
    vote, reason = _vote(batch, expected)
    verdict = batch.run.ranks.minimum(vote, batch.logits.device)
    if verdict == NO:
        reason = reason if vote == NO else "another rank found a reason"
        warnings.warn(FALLBACK.format(reason=reason), ModbalanceWarning, stacklevel=depth_of_caller())
    return {NO: "full", ABSTAIN: "auto", YES: "factored"}[verdict]


def _vote(batch: Batch, expected: Mapping[Coalition, Tensor]) -> tuple[int, str]:
    try:
        found = torch.stack([*factored(batch).values()])
        precision = found.dtype if batch.forward is None else batch.forward.precision(found.dtype)
        vote = agreement(found, torch.stack([*expected.values()]), precision)
        mixing = None if vote == ABSTAIN else batch.why_not_separate()
    except (ConfigError, RuntimeError, ValueError) as error:
        return NO, f"the other form fails ({error})"
    return (NO, mixing) if mixing is not None else (vote, "both forms yield different logits")
