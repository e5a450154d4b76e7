"""Meaning of logits and targets in a diagnosis: a value for each sample, and a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from modbalance import scores
from modbalance.errors import ConfigError

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "binary": F.binary_cross_entropy_with_logits,
    "multilabel": F.binary_cross_entropy_with_logits,
    "regression": F.mse_loss,
}
IGNORE_INDEX = -100


@attrs.frozen(eq=False)
class Task:
    """What is measured on the logits.

    Attributes:
        score: ``None``: the accuracy of classes; else a score of `modbalance.scores`, the mean of which is measured.
        loss_fn: Loss of which gradients are taken; ``None``: no gradients are measured.
        ignore_index: Class index of elements that do not count.
    """

    score: scores.Score | None
    loss_fn: Callable[..., Tensor] | None
    ignore_index: int = IGNORE_INDEX

    @property
    def quantity(self) -> str:
        """Name of what is measured."""
        return "accuracy" if self.score is None else "score"

    def values(self, logits: Tensor, target: Any) -> Tensor:
        """Return the value of each sample, (B,) in double precision: share of correct elements, or mean score.

        A sample of which no element counts is NaN.
        """
        if self.score is None:
            if target.is_floating_point():
                target = target.argmax(1)
            value, mask = logits.argmax(1) == target, target != self.ignore_index
        else:
            value, mask = self.score(logits, target)
            mask = torch.ones_like(value, dtype=torch.bool) if mask is None else mask
        value, mask = value.double().reshape(len(logits), -1), mask.reshape(len(logits), -1)
        return (value * mask).sum(1) / mask.sum(1)

    def logits_of(self, output: Any, like: Tensor) -> Tensor:
        """Return the logits in an output of the model: the output itself, or the one tensor that looks like them."""
        if isinstance(output, Tensor):
            return output
        parts = output.values() if hasattr(output, "values") else output
        fitting = [each for each in parts if isinstance(each, Tensor) and each.shape == like.shape]
        if len(fitting) == 1:
            return fitting[0]
        raise ConfigError(
            f"The model should return its logits, of shape {tuple(like.shape)}, as one tensor or as the only one of "
            f"that shape. Found {len(fitting)} in a {type(output).__name__}: diagnose a module that returns the logits."
        )

    def check(self, logits: Tensor, target: Any, where: str) -> None:
        """Raise a ConfigError, with the place, for logits that are not finite and for targets that do not fit them."""
        if not bool(logits.isfinite().all()):
            rows = (~logits.reshape(len(logits), -1).isfinite().all(1)).sum().item()
            raise ConfigError(
                f"Logits should be finite. Found NaN or infinity in {rows} of {len(logits)} samples of {where}: "
                "diagnose weights from before the training diverged, or look for NaN in the inputs."
            )
        if self.score is not None:
            return
        scores.check_classes(logits, target)
        if target.is_floating_point():
            return
        counted = target[target != self.ignore_index]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < logits.shape[1]:
            raise ConfigError(
                f"Labels should lie in [0, {logits.shape[1] - 1}] for {logits.shape[1]} classes. Found "
                f"{int(counted.min())} to {int(counted.max())} in {where}: number the classes from 0, or mark elements "
                f"that do not count by {self.ignore_index}."
            )


def task_of(score: scores.Score | str | None, loss_fn: Callable[..., Tensor] | None) -> Task:
    """Return the task of a score, as in `opt.criterion(score=)`, and a loss; ``None``: the one that fits the score."""
    if score is None or score == "softmax":
        found = None if score is None else scores.resolve(score, loss_fn)
        default: Callable[..., Tensor] | None = F.cross_entropy
    else:
        found = scores.resolve(score, loss_fn)
        default = _LOSSES.get(score) if isinstance(score, str) else None
    return Task(found, loss_fn or default, getattr(loss_fn, "ignore_index", IGNORE_INDEX))


def is_of_classes(score: scores.Score) -> bool:
    """Return whether a score is the default one, the probability of the target class."""
    return getattr(score, "func", None) is scores.softmax().func  # type: ignore[attr-defined]
