"""Distances between the predictions of two modalities, and their mean over a batch."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance.scores import row_mask, widened


def log_probabilities(logits: Tensor, kind: str) -> Tensor:
    """Return log p, (B, C, ...) of classes, or (B, 2, L, ...) of labels, each of which is there or not."""
    logits = widened(logits)
    if kind == "labels":
        return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], 1)
    return logits.log_softmax(1)


def distance(log_p: Tensor, log_q: Tensor, divergence: str) -> Tensor:
    """Return the distance of two distributions along dim 1, (B, ...), >= 0: of both to their mean, or of it to both."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    if divergence == "js":
        # [KL(p || m) + KL(q || m)] / 2
        return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2
    # [KL(m || p) + KL(m || q)] / 2
    return (log_m.exp() * (log_m - log_p / 2 - log_q / 2)).sum(1)


def alignment(
    o: Mapping[str, Tensor],
    kind: str,
    divergence: str,
    pairs: str,
    counts: Tensor | None,
    present: Mapping[str, Tensor],
) -> Tensor:
    """Return A, 0-dim: the mean distance over elements, then the sum or mean over pairs of modalities.

    Args:
        o: Logits by modality.
        kind: "classes" or "labels".
        divergence: See `distance`.
        pairs: "sum" or "mean".
        counts: Boolean, (B, ...): the elements that count; ``None``: all.
        present: By modality, boolean (B,): the samples that have it.
    """
    log_p = {name: log_probabilities(each, kind) for name, each in o.items()}
    terms = []
    for one, other in itertools.combinations(log_p, 2):
        each = distance(log_p[one], log_p[other], divergence)
        masks = [row_mask(present[name], each) for name in (one, other) if name in present]
        terms.append(mean(each, masks if counts is None else [counts.to(each.device), *masks]))
    total = functools.reduce(torch.add, terms)
    return total if pairs == "sum" else total / len(terms)


def mean(values: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Return the mean of the values that all masks admit, 0 where there are none."""
    if not masks:
        return values.sum() / max(values.numel(), 1)
    mask = functools.reduce(torch.logical_and, masks).expand_as(values)
    return values.where(mask, 0).sum() / mask.sum().clamp(min=1)


def fused(o: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the logits, (B, C, ...), over the modalities that a sample has; zeros where it has none."""
    if not present:
        return functools.reduce(torch.add, o.values()) / len(o)
    first = next(iter(o.values()))
    there = {name: row_mask(present[name], first) if name in present else None for name in o}
    kept = [each if (mask := there[name]) is None else each.where(mask, 0) for name, each in o.items()]
    number = functools.reduce(
        torch.add, [torch.ones((), device=first.device) if m is None else m for m in there.values()]
    )
    return functools.reduce(torch.add, kept) / number.clamp(min=1).to(first.dtype)


def counted(target: Any, logits: Tensor, loss_fn: object) -> Tensor | None:
    """Return which elements count, (B, ...): those whose class index is not the loss's `ignore_index`."""
    is_index = isinstance(target, Tensor) and not target.is_floating_point()
    if not is_index or target.shape != logits.shape[:1] + logits.shape[2:]:
        return None
    ignored: int = getattr(loss_fn, "ignore_index", -100)
    return target != ignored
