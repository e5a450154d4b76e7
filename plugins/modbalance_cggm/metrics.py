"""What CGGM measures its probes by: sums and counts over a batch, 0-dim double precision, without host reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modbalance import ConfigError
from modbalance.scores import require_classes

Metric = Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]
Sums = tuple[Tensor, Tensor]
Built = Callable[[Tensor, Tensor, Tensor | None, int], Sums]

# Enhancing tumour, tumour core, whole tumour: the regions of the authors' segmentation task.
BRATS = ((3,), (1, 3), (1, 2, 3))
SMOOTH = 2e-3


def accuracy(logits: Tensor, target: Tensor, there: Tensor | None, ignore_index: int) -> Sums:
    """Count the elements whose largest logit is the target's; logits (B, C, ...), indices (B, ...) or probabilities."""
    target = _indices(logits, target, "accuracy")
    valid = _valid(target, there, ignore_index)
    return ((logits.argmax(1) == target) & valid).sum(dtype=torch.float64), valid.sum(dtype=torch.float64)


def sign(logits: Tensor, target: Tensor, there: Tensor | None, ignore_index: int) -> Sums:
    """Count the elements for which (prediction > 0) == (target > 0); both of one shape."""
    if logits.shape != target.shape:
        raise ConfigError(
            f"Target should have the shape of the predictions, {tuple(logits.shape)}, for `metric='sign'`. "
            f"Found {tuple(target.shape)}."
        )
    valid = _rows(there, torch.ones_like(logits, dtype=torch.bool))
    return (((logits > 0) == (target > 0)) & valid).sum(dtype=torch.float64), valid.sum(dtype=torch.float64)


def dice(
    logits: Tensor, target: Tensor, there: Tensor | None, ignore_index: int, regions: Sequence[Sequence[int]] = ()
) -> Sums:
    """Sum over the samples of the mean Dice coefficient of ``regions``; default: of each class but 0.

    A region is a set of classes. Of the elements where prediction or target lies in it, with sizes p and t and
    intersection n, the coefficient is (2 n + 0.002) / (p + t + 0.002).
    """
    target = _indices(logits, target, "dice")
    valid, predicted = _valid(target, None, ignore_index), logits.argmax(1)
    valid, predicted, target = (each.unsqueeze(-1).flatten(1) for each in (valid, predicted, target))
    total = logits.new_zeros(len(logits), dtype=torch.float64)
    regions = regions or [(label,) for label in range(1, logits.shape[1])]
    for region in regions:
        p, t = (_inside(labels, region) & valid for labels in (predicted, target))
        both, sizes = (each.flatten(1).sum(1, dtype=torch.float64) for each in (p & t, torch.cat([p, t], 1)))
        total = total + (2 * both + SMOOTH) / (sizes + SMOOTH) / len(regions)
    counted = _rows(there, torch.ones_like(total, dtype=torch.bool))
    return total.where(counted, 0).sum(), counted.sum(dtype=torch.float64)


def dice_brats(logits: Tensor, target: Tensor, there: Tensor | None, ignore_index: int) -> Sums:
    """Dice of the authors' regions: class 3, classes 1 and 3, all but 0."""
    return dice(logits, target, there, ignore_index, BRATS)


BUILT: dict[str, Built] = {"accuracy": accuracy, "sign": sign, "dice": dice, "dice_brats": dice_brats}


def check_metric(metric: str | Metric, loss_fn: object) -> None:
    """Raise a ConfigError for the accuracy of classes beside a loss of labels or numbers."""
    if metric == "accuracy":
        require_classes(loss_fn, "The `metric='accuracy'` of CGGM", "pass `metric='sign'`, or a callable")


def measure(
    metric: str | Metric, logits: Tensor, target: Tensor, there: Tensor | None = None, ignore_index: int = -100
) -> Sums:
    """Return (sum, count) of a metric over one batch, 0-dim fp64.

    Args:
        metric: Name of a metric, or a callable ``(logits, target) -> (sum, count)``.
        logits: Outputs of a probe, (B, C, ...).
        target: Target of the criterion.
        there: Boolean (B,): samples that count; ``None``: all.
        ignore_index: Class index of elements that do not count.
    """
    if isinstance(metric, str):
        return BUILT[metric](logits, target, there, ignore_index)
    if there is not None:
        raise ConfigError(
            f"With `present=`, `metric` should be one of {', '.join(map(repr, BUILT))}. Found a callable, which cannot "
            "leave out the samples that lack a modality."
        )
    total, count = (_double(value, logits) for value in metric(logits, target))
    return total, count


def _double(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(like.device, torch.float64)
    return like.new_full((), value, dtype=torch.float64)


def _indices(logits: Tensor, target: Tensor, name: str) -> Tensor:
    """Return class indices (B, ...); class probabilities count as the most probable class."""
    if target.is_floating_point() and target.shape == logits.shape and logits.dim() > 1 and logits.shape[1] > 1:
        return target.argmax(1)
    if target.is_floating_point() or logits.dim() < 2 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ConfigError(
            f"Target should be class indices or class probabilities for `metric={name!r}` on logits of shape "
            f"{tuple(logits.shape)}. Found {target.dtype} of shape {tuple(target.shape)}. For regression pass "
            "`metric='sign'`, for other tasks a callable (logits, target) -> (sum, count)."
        )
    return target


def _valid(target: Tensor, there: Tensor | None, ignore_index: int) -> Tensor:
    return _rows(there, target != ignore_index)


def _rows(there: Tensor | None, elements: Tensor) -> Tensor:
    if there is None:
        return elements
    return elements & there.to(elements.device).reshape(-1, *[1] * (elements.dim() - 1))


def _inside(labels: Tensor, region: Sequence[int]) -> Tensor:
    inside = labels == region[0]
    for label in region[1:]:
        inside = inside | (labels == label)
    return inside
