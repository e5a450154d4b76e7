"""Inner optimizer and learning-rate schedule, from settings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, ReduceLROnPlateau, StepLR
from torch.optim.optimizer import Optimizer

from recipe_common.errors import RecipeError
from recipe_common.settings.shared import OptimisationSettings
from recipe_common.tasks.task import Metric


def build_inner(settings: OptimisationSettings, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimizer that ``--optimizer`` names."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


class Schedule:
    """Learning-rate schedule, stepped after every optimizer step for ``cosine``, after every epoch otherwise.

    Args:
        settings: ``schedule``, ``lr`` and the settings of the schedule.
        optimizer: Optimizer with the learning rate.
        metric: Metric that ``plateau`` follows.
        steps_per_epoch: Optimizer steps per epoch, for ``cosine``.

    Raises:
        RecipeError: If ``plateau`` could not change the learning rate.
    """

    def __init__(
        self, settings: OptimisationSettings, optimizer: Optimizer, metric: Metric, steps_per_epoch: int
    ) -> None:
        self._is_by_step = settings.schedule == "cosine"
        self._scheduler = _scheduler(settings, optimizer, metric, steps_per_epoch)

    def after_step(self) -> None:
        """Change the learning rate after an optimizer step, if the schedule counts steps."""
        if self._is_by_step:
            self._step()

    def after_epoch(self, value: float) -> None:
        """Change the learning rate after an epoch, if the schedule counts epochs; ``value`` is that of the metric."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(value)
        elif self._scheduler is not None and not self._is_by_step:
            self._step()

    def _step(self) -> None:
        assert isinstance(self._scheduler, LRScheduler)
        with warnings.catch_warnings():
            # A run that was interrupted in its evaluation took the steps of this epoch in another process.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, for a checkpoint."""
        return {} if self._scheduler is None else dict(self._scheduler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state)


def _scheduler(
    settings: OptimisationSettings, optimizer: Optimizer, metric: Metric, steps_per_epoch: int
) -> LRScheduler | ReduceLROnPlateau | None:
    if settings.schedule == "step":
        return StepLR(optimizer, settings.step_size, settings.gamma)
    if settings.schedule == "multistep":
        return MultiStepLR(optimizer, settings.milestones, settings.gamma)
    if settings.schedule == "plateau":
        if settings.gamma >= 1:
            raise RecipeError(
                "`--gamma` should be below 1 with `--schedule plateau`",
                found=f"{settings.gamma}",
                fix="write `--gamma 0.1`",
            )
        mode: Literal["max", "min"] = "max" if metric.higher_is_better else "min"
        return ReduceLROnPlateau(optimizer, mode, settings.gamma, settings.patience)
    if settings.schedule == "cosine":
        return LambdaLR(optimizer, _Cosine(settings, steps_per_epoch))
    return None


class _Cosine:
    """Factor of ``--lr`` after a number of steps: linear from ``--warmup-lr``, then half a cosine to ``--final-lr``."""

    def __init__(self, settings: OptimisationSettings, steps_per_epoch: int) -> None:
        self.start, self.end = settings.warmup_lr / settings.lr, settings.final_lr / settings.lr
        self.warmup = settings.warmup_epochs * steps_per_epoch
        self.total = settings.epochs * steps_per_epoch

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (1 - self.start) * step / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2
