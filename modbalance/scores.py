"""Scores: how well a modality does, per task; comparison of scores beyond rounding.

A score is a callable `(logits, target) -> (score, mask)`: one number per element, larger for better, and a boolean
mask of the same shape, true for elements that count (`None`: all).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbalance.errors import ConfigError, suggest

__all__ = [
    *("Score", "binary", "multilabel", "regression", "softmax"),
    *("clearly_greater", "kind_of", "require_classes", "resolve", "row_mask", "widened"),
]

# Sums over a batch, means over up to seven other modalities and a division are off by fewer units than this.
_TIE_IN_UNITS = 32
_LARGE = 1 << 20  # elements

Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def softmax(ignore_index: int = -100) -> Score:
    """Softmax probability of the target class (Peng et al., CVPR 2022, summand of Eq. 8; range [0, 1]).

    Logits are (B, C, ...), class indices (B, ...) or class probabilities (B, C, ...); the latter score by their
    expectation. Elements whose index is ``ignore_index`` do not count.
    """
    return functools.partial(_softmax, ignore_index)


def _softmax(ignore_index: int, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    check_classes(logits, target)
    return _of_classes(logits, target, ignore_index, 1)


def _of_classes(logits: Tensor, target: Tensor, ignore_index: int, dim: int) -> tuple[Tensor, Tensor | None]:
    """Return the probability of the target, (..., B, ...), for classes along ``dim`` of logits (..., B, C, ...)."""
    probability = widened(logits).softmax(dim)
    if target.is_floating_point():
        return (probability * target).sum(dim), None
    mask = target != ignore_index
    index = (target * mask).long().expand(*logits.shape[: dim - 1], *target.shape).unsqueeze(dim)
    return probability.gather(dim, index).squeeze(dim), mask


def of_each(score: Score, logits: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Return the scores of M logits of one batch by one softmax, (M, B, ...), and their common mask, (B, ...).

    ``None`` for a score that is not `softmax`, and for logits so large that a copy of them costs more than a launch.
    """
    if not isinstance(score, functools.partial) or score.func is not _softmax:
        return None
    first, *others = logits
    if len(logits) * first.numel() > _LARGE or any(each.shape != first.shape for each in others):
        return None
    check_classes(first, target)
    return _of_classes(torch.stack([*logits]), target, score.args[0], 2)


def binary(logits: Tensor, target: Tensor) -> tuple[Tensor, None]:
    """Sigmoid probability of a target in [0, 1], element by element; logits and target of one shape."""
    check_same_shape(logits, target, "binary")
    probability = widened(logits).sigmoid()
    target = target.to(probability.dtype)
    return target * probability + (1 - target) * (1 - probability), None


def multilabel(logits: Tensor, target: Tensor) -> tuple[Tensor, None]:
    """Mean over the labels (dim 1) of the binary score; logits and target (B, L, ...)."""
    probability, _ = binary(logits, target)
    return probability.mean(1), None


def regression(logits: Tensor, target: Tensor) -> tuple[Tensor, None]:
    """Likelihood exp(-error^2 / 2) under unit variance, in (0, 1]; prediction and target of one shape."""
    check_same_shape(logits, target, "regression")
    return (-0.5 * (widened(logits) - target).square()).exp(), None


PRESETS: dict[str, Score] = {"binary": binary, "multilabel": multilabel, "regression": regression}

_LABELS, _NUMBERS = "'binary' or 'multilabel'", "'regression'"
_NOT_FOR_CLASSES: dict[object, str] = {
    **dict.fromkeys((nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss), _LABELS),
    **dict.fromkeys((nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss), _NUMBERS),
    **dict.fromkeys((F.binary_cross_entropy, F.binary_cross_entropy_with_logits), _LABELS),
    **dict.fromkeys((F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss), _NUMBERS),
}


def resolve(score: Score | str | None, loss_fn: object) -> Score:
    """Return a score from ``None``, the name of a preset, or a callable."""
    if callable(score):
        return score
    if score is None or score == "softmax":
        return softmax(getattr(loss_fn, "ignore_index", -100))
    if score not in PRESETS:
        raise ConfigError(
            f"Parameter `score` should be a callable or the name of a preset. "
            f"Found `score = {score!r}`. {suggest(str(score), ['softmax', *PRESETS])}"
        )
    return PRESETS[score]


def require_classes(loss_fn: object, what: str, fix: str) -> None:
    """Raise a ConfigError for a loss of torch whose targets are numbers or labels, which look like probabilities.

    Args:
        loss_fn: The user's loss.
        what: The quantity that is defined for classes alone.
        fix: The value to pass instead; ``{presets}`` stands for the scores that fit the loss.
    """
    presets = _NOT_FOR_CLASSES.get(loss_fn if isinstance(loss_fn, FunctionType) else type(loss_fn))
    if presets is not None:
        name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        raise ConfigError(f"{what} is that of classes. Found the loss {name}: {fix.format(presets=presets)}.")


def kind_of(loss_fn: object, score: Score | None = None) -> Literal["classes", "labels", "numbers"]:
    """Return what logits are of: a loss of torch tells, or else a preset of scores; classes where neither does.

    Args:
        loss_fn: The user's loss.
        score: The score in use, as `resolve` returned it.
    """
    known = _NOT_FOR_CLASSES.get(loss_fn if isinstance(loss_fn, FunctionType) else type(loss_fn))
    if known == _NUMBERS or score is regression:
        return "numbers"
    return "labels" if known == _LABELS or score in (binary, multilabel) else "classes"


def widened(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in single precision, or in double if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def row_mask(rows: Tensor, tensor: Tensor) -> Tensor:
    """Return a boolean mask of samples, (B,), as (B, 1, ...) on the device of a tensor (B, ...)."""
    return rows.to(tensor.device).reshape(-1, *[1] * (tensor.dim() - 1))


@overload
def clearly_greater(value: float, than: float, precision: torch.dtype | None = ...) -> bool: ...
@overload
def clearly_greater(value: Tensor | float, than: Tensor, precision: torch.dtype | None = ...) -> Tensor: ...
@overload
def clearly_greater(value: Tensor, than: float, precision: torch.dtype | None = ...) -> Tensor: ...
def clearly_greater(value: Tensor | float, than: Tensor | float, precision: torch.dtype | None = None) -> Tensor | bool:
    """Return whether ``value`` > ``than`` by more than rounding: beyond 32 units in the last place of ``than``.

    Numbers that are equal on paper differ in their last digits, which depend on the order of sums and so on memory
    alignment, thread count and rank. Every decision on such numbers goes through here: equal numbers are never
    clearly greater. NaN compares false, infinity exceeds any finite number, any positive number exceeds 0. Tensors are
    not read on the host.

    Args:
        value: A number, or a tensor of any shape.
        than: The same; tensors are broadcast.
        precision: Precision in which the numbers were computed; ``None``: the coarser one of the tensors, at least
            single, or double for two numbers.

    Returns:
        A boolean tensor, or a bool for two numbers.
    """
    tensors = [widened(each) for each in (value, than) if isinstance(each, Tensor)]
    dtypes = [each.dtype for each in tensors] or [torch.float64]
    unit = max(torch.finfo(dtype).eps for dtype in ([precision] if precision else dtypes))
    if isinstance(than, Tensor):
        than = widened(than)
        return value > than + (_TIE_IN_UNITS * unit * than.abs()).clamp(max=torch.finfo(than.dtype).max)
    bound = than + min(_TIE_IN_UNITS * unit * abs(than), sys.float_info.max)
    return widened(value) > bound if isinstance(value, Tensor) else value > bound


def check_classes(logits: Tensor, target: Tensor) -> None:
    """Raise unless ``target`` holds class indices or class probabilities for ``logits`` (B, C, ...)."""
    if not isinstance(target, Tensor):
        raise ConfigError(
            f"Target should be a tensor of class indices or class probabilities. Found {type(target).__name__}. "
            "For other tasks pass `score=` to `opt.criterion`."
        )
    indices = logits.shape[:1] + logits.shape[2:]
    if logits.dim() < 2 or logits.shape[1] < 2:
        raise ConfigError(
            f"Logits should be (B, C, ...) with C >= 2 for the softmax score. Found shape {tuple(logits.shape)}. "
            f"For other tasks pass `score=` to `opt.criterion`: {', '.join(map(repr, PRESETS))}, or a callable."
        )
    if target.is_floating_point() and target.shape == logits.shape:
        return
    if target.is_floating_point() or target.dtype == torch.bool or target.is_complex() or target.shape != indices:
        raise ConfigError(
            f"Target should be class indices, integer of shape {tuple(indices)}, or class probabilities, float of "
            f"shape {tuple(logits.shape)}, for logits of shape {tuple(logits.shape)}. "
            f"Found {target.dtype} of shape {tuple(target.shape)}. For other tasks pass `score=` to `opt.criterion`."
        )


def check_same_shape(logits: Tensor, target: Tensor, name: str) -> None:
    """Raise unless ``logits`` and ``target`` have one shape."""
    if logits.shape != target.shape:
        raise ConfigError(
            f"Target should have the shape of the logits, {tuple(logits.shape)}, for the {name} score. "
            f"Found {tuple(target.shape)}."
        )
