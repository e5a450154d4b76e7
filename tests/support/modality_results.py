"""Epochs that end with given results of each modality."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer
from support.training import balanced, weights


def end(optimizer: BalancedOptimizer, *numbers: float) -> None:
    """End an epoch with numbers for each modality, as accuracies and as losses."""
    by_modality = dict(zip(optimizer._lifecycle.run.modalities, numbers, strict=True))
    optimizer.end_epoch(metrics={"accuracy": by_modality, "loss": by_modality})


def stopped(model: nn.Module, *which: float, patience: int = 0, **arguments: Any) -> BalancedOptimizer:
    """Return MSES after two epochs without steps: modalities with a 1 got worse and stopped, the others better."""
    optimizer = balanced(model, "mses", patience=patience, **arguments)
    end(optimizer, *[1.0 for _ in which])
    end(optimizer, *[2.0 if worse else 0.5 for worse in which])
    return optimizer


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the top parts of what has changed: a, b, fusion."""
    names = [name for name, value in weights(model).items() if not torch.equal(value, before[name])]
    return {name.removeprefix("encoders.").split(".")[0] for name in names}
