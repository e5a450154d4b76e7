"""The matrix P that turns the gradient of the head, so that it forgets other modalities less."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 1e-3  # a denominator of the entry-by-entry form below this is ill-conditioned


def rate(index: int, steps: int | None) -> float:
    """Return alpha = 0.1^(1 + i / n) of the i-th batch of n, .1 where n is not known."""
    return 0.1 if steps is None else 0.1 ** (1 + min(index, steps) / steps)


def updated(P: Tensor, r: Tensor, alpha: float, form: str) -> tuple[Tensor, Tensor]:
    """Return P after a mean input, and whether a denominator was small or no number, 0-dim; P stays if not finite.

    Args:
        P: (D, D).
        r: Mean input of the layer, (D,).
        alpha: Regularisation, > 0.
        form: ``elementwise`` or ``rls``.
    """
    k = P @ r
    if form == "rls":
        below = alpha + r @ k
        return _finite(P - torch.outer(k, k) / below, P), ~(below.abs() >= SMALL)
    below = alpha + torch.outer(k, r)
    new = P - torch.outer(k, k) / below  # P <- P - (k k^T) / (alpha + k r^T), entry by entry
    return _finite(new / torch.linalg.matrix_norm(new), P), (~(below.abs() >= SMALL)).any()


def _finite(new: Tensor, old: Tensor) -> Tensor:
    return torch.where(new.isfinite().all(), new, old)
