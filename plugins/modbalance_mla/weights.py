"""Weights of the modalities' logits in evaluation."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

OFFICIAL = {2: (0.55, 0.45), 3: (0.35, 0.25, 0.4)}
"""Weights of the authors' code by number of modalities, in their order."""


def fused(o: Mapping[str, Tensor], how: str, given: Mapping[str, float] | None) -> Tensor:
    """Return sum_m w_m o_m of logits o_m, (B, C, ...) each.

    Args:
        o: Logits by modality.
        how: ``fixed``, ``batch_entropy`` or ``sample_entropy``.
        given: Fixed weights by modality; ``None``: those of the authors for two and three modalities, else their mean.
    """
    if how == "fixed":
        listed = OFFICIAL.get(len(o), [1 / len(o)] * len(o)) if given is None else [given[name] for name in o]
        return functools.reduce(torch.add, [w_m * o_m for w_m, o_m in zip(listed, o.values(), strict=True)])
    stacked = torch.stack([*o.values()])
    if how == "batch_entropy":
        w = (-entropy(stacked, 1).flatten(1).sum(1)).softmax(0)  # one number for each modality and batch
    else:
        w = (-entropy(stacked, 2).sum(2, keepdim=True)).softmax(0)  # one for each modality and sample
    return (w.reshape(w.shape + (1,) * (stacked.dim() - w.dim())) * stacked).sum(0)


def entropy(o: Tensor, dim: int) -> Tensor:
    """Return -p log p of p = softmax of ``o`` over a dimension, entry by entry; 0 where all logits are -inf."""
    return torch.special.entr(o.masked_fill(o.amax(dim, keepdim=True) == -torch.inf, 0).softmax(dim)).where(
        o > -torch.inf, 0
    )
