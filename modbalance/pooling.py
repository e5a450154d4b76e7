"""One feature vector per sample, of features of any shape."""

from __future__ import annotations

from torch import Tensor

from modbalance.scores import widened

__all__ = ["pooled"]


def pooled(feature: Tensor) -> Tensor:
    """Return one vector per sample, (B, D), at least in single precision, with graph.

    Args:
        feature: Vectors (B, D), as they are; tokens (B, T, D), averaged over T; maps (B, D, H, W, ...), averaged over
            their positions.
    """
    wide = widened(feature)
    if wide.dim() < 3:
        return wide if wide.dim() == 2 else wide[:, None]
    return wide.mean(1) if wide.dim() == 3 else wide.flatten(2).mean(2)
