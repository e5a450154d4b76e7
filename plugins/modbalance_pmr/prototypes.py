"""Class means of features, and the classifier without parameters that they make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modbalance import Batch, ObservationError, Run
from modbalance.pooling import pooled


class Classified(NamedTuple):
    """How prototypes classify a batch: sum of the targets' probabilities, their number, and the loss, all 0-dim."""

    total: Tensor
    number: Tensor
    loss: Tensor


def classified(z: Tensor, prototypes: Tensor, y: Tensor, seen: Tensor) -> Classified:
    """Compare features with prototypes.

    Args:
        z: Features, (B, D), with graph.
        prototypes: One row for each class, (C, D).
        y: Share of each class in each sample, (B, C); a row of zeros does not count.
        seen: Which classes have a prototype, (C,).
    """
    # The default of cdist takes distances from a product of matrices, which loses small ones: off by 0.009 at 0.02.
    distance = torch.cdist(z, prototypes.to(z.dtype), compute_mode="donot_use_mm_for_euclid_dist")
    lowest = torch.finfo(z.dtype).min / 2  # finite, as 0 * inf is not
    log_p = (-distance).masked_fill(~seen.to(z.device), lowest).log_softmax(1)  # softmax_c(-|z_i - P_i[c]|)
    y = y.to(z.dtype)
    count = y.sum()
    loss = -(y * log_p).sum() / count.clamp(min=torch.finfo(z.dtype).tiny)  # L_i = CE(-|z_i - P_i[c]|, y)
    return Classified((y * log_p.detach().exp()).sum(), count, loss)


def memberships(target: Any, logits: Tensor, classes: int) -> Tensor:
    """Return the share of each class in each sample, (B, C); zeros where a class index is none of a class.

    Args:
        target: Class indices, (B,), or class probabilities, (B, C).
        logits: Logits that the target belongs to.
        classes: C.

    Raises:
        ObservationError: The target is another one.
    """
    if isinstance(target, Tensor) and len(target) == len(logits):
        if target.shape == (len(logits), classes) and target.is_floating_point():
            return target
        if target.numel() == len(logits) and not (target.is_floating_point() or target.is_complex()):
            return (target.reshape(-1, 1) == torch.arange(classes, device=target.device)).to(torch.float32)
    found = f"{target.dtype} of shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
    raise ObservationError(
        f"Method `pmr` needs one class index per sample as the target, shape ({len(logits)},), or class probabilities, "
        f"({len(logits)}, {classes}). Found {found}: use another method for targets of other kinds."
    )


def class_sums(run: Run, batches: Iterable[Batch]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return sums of features by class, (C, D_i) each by modality, and numbers of samples, (C,), over all ranks.

    Without a batch there are none.
    """
    sums: dict[str, Tensor] = {}
    counts: Tensor | None = None
    for batch in batches:
        batch.require_kind("classes", what="compares features with means of classes")
        classes = max(2, batch.logits.shape[1]) if batch.logits.dim() > 1 else 2
        y = memberships(batch.target, batch.logits, classes)
        for name, feature in batch.require_features().items():
            z = pooled(feature)
            if len(z) != len(y):
                raise ObservationError(
                    f"Method `pmr` needs one feature per sample. Found {len(z)} of {name!r} for {len(y)} targets: name "
                    "the module in `fusion=` that gets one feature per sample."
                )
            total = y.to(z.dtype).T @ z
            sums[name] = sums[name] + total if name in sums else total
        counts = y.sum(0) if counts is None else counts + y.sum(0)
    if counts is None:
        return {}, None
    *totals, count = run.sums([*sums.values(), counts])
    return dict(zip(sums, totals, strict=True)), count
