"""Weights of the modalities' logits in evaluation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modbalance.scores import row_mask

OFFICIAL = {2: (0.55, 0.45), 3: (0.35, 0.25, 0.4)}
"""Weights of the authors' code by number of modalities, in their order."""


def fused(
    o: Mapping[str, Tensor], how: str, given: Mapping[str, float] | None, present: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return sum_m w_m o_m of logits o_m, (B, C, ...) each.

    Args:
        o: Logits by modality.
        how: ``fixed``, ``batch_entropy`` or ``sample_entropy``.
        given: Fixed weights by modality; ``None``: those of the authors for two and three modalities, else their mean.
        present: By modality, boolean (B,): the samples that have it. The weights of the others grow by one factor, so
            that their sum stays; logits of a sample without any modality are 0.
    """
    w = _weights(o, how, given)
    if not present:
        return functools.reduce(torch.add, [w_m * o_m for w_m, o_m in zip(w, o.values(), strict=True)])
    there = [
        row_mask(present[m], o_m) if m in present else torch.ones_like(o_m, dtype=torch.bool) for m, o_m in o.items()
    ]
    kept = functools.reduce(torch.add, [w_m * there_m for w_m, there_m in zip(w, there, strict=True)])
    rows = zip(w, o.values(), there, strict=True)
    total = functools.reduce(torch.add, [w_m * o_m.masked_fill(~there_m, 0) for w_m, o_m, there_m in rows])
    return total * sum(w) / torch.where(kept > 0, kept, 1)


def _weights(o: Mapping[str, Tensor], how: str, given: Mapping[str, float] | None) -> list[Any]:
    """Return w_m by modality: numbers, or tensors that broadcast over logits."""
    if how == "fixed":
        return [*OFFICIAL.get(len(o), [1 / len(o)] * len(o))] if given is None else [given[name] for name in o]
    stacked = torch.stack([*o.values()])
    if how == "batch_entropy":
        w = (-entropy(stacked, 1).flatten(1).sum(1)).softmax(0)  # one number for each modality and batch
    else:
        w = (-entropy(stacked, 2).sum(2, keepdim=True)).softmax(0)  # one for each modality and sample
    return [*w.reshape(w.shape + (1,) * (stacked.dim() - w.dim()))]


def entropy(o: Tensor, dim: int) -> Tensor:
    """Return -p log p of p = softmax of ``o`` over a dimension, entry by entry; 0 where all logits are -inf."""
    return torch.special.entr(o.masked_fill(o.amax(dim, keepdim=True) == -torch.inf, 0).softmax(dim)).where(
        o > -torch.inf, 0
    )
