"""Measures what remains of an optimizer's update when the gradients are scaled, on a scratch parameter.

A method that scales gradients by a coefficient then has almost no effect: Adam, RMSprop, Lion, Muon and others divide
gradients by their own running size, take their sign, or make them orthogonal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modbalance._joint import JointOptimizer
from modbalance._scratch import Build, builder, scratch_of, settings_of

COEFFICIENT = 0.01
MOST = 0.5
"""From this share on the update counts as one that does not follow the gradients."""
STEPS = 20
"""Number of scratch steps, of which the second half is measured: some optimizers begin otherwise, as RAdam does."""


def kept_update(optimizer: Optimizer, parameters: Collection[Tensor]) -> tuple[float, str]:
    """Return how far a parameter moves with all gradients multiplied by 0.01, over how far it moves without.

    0.01 for SGD, 1 for Adam, and 100 for optimizers whose update is inverse to the gradient. Further optimizers of the
    same class and settings step a scratch matrix: the optimizer itself, its state and the global random state stay as
    they are. Classes that cannot be built from parameters and settings alone, and those whose step needs a closure,
    count as 0.

    Args:
        optimizer: The optimizer.
        parameters: The parameters that matter; groups without them are left out.

    Returns:
        The share, the largest over the groups, and the name of the optimizer's class.
    """
    if isinstance(optimizer, JointOptimizer):
        return max(kept_update(each, parameters) for each in optimizer.optimizers)
    ours = {*map(id, parameters)}
    groups = [group for group in optimizer.param_groups if any(id(each) in ours for each in group["params"])]
    distinct = {_without_names(settings): settings for settings in map(settings_of, groups)}
    shares = (_kept(type(optimizer), optimizer.defaults, settings) for settings in distinct.values())
    return max(shares, default=0.0), type(optimizer).__name__


def _without_names(settings: Mapping[str, Any]) -> str:
    return repr({name: value for name, value in settings.items() if not isinstance(value, str)})


def _kept(kind: type[Optimizer], defaults: Mapping[str, Any], group: Mapping[str, Any]) -> float:
    build = builder(kind, defaults, group)
    try:
        share = float(_update(build, COEFFICIENT) / _update(build, 1.0))
    except Exception:
        # The class is the user's: what it needs beyond its settings, and what it raises without, cannot be known.
        # Nor can anything be read under FakeTensorMode.
        return 0.0
    return share if math.isfinite(share) else 0.0


def _update(build: Build, coefficient: float) -> Tensor:
    """Return how far a scratch matrix moves in the second half of the steps, as a norm (0-dim)."""
    with scratch_of(build) as (scratch, take):
        before = scratch.detach().clone()
        for index, gradient in enumerate(torch.randn(STEPS, 4, 4, device="cpu")):
            if index == STEPS // 2:
                before = scratch.detach().clone()
            take(coefficient * gradient)
        return (scratch.detach() - before).norm()
