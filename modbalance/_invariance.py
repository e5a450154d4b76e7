"""Measures what remains of an optimizer's update when the gradients are scaled, on a scratch parameter.

A method that scales gradients by a coefficient then has almost no effect: Adam, RMSprop, Lion, Muon and others divide
gradients by their own running size, take their sign, or make them orthogonal.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance._joint import JointOptimizer

COEFFICIENT = 0.01
MOST = 0.5
"""From this share on the update counts as one that does not follow the gradients."""
STEPS = 20
"""Number of scratch steps, of which the second half is measured: some optimizers begin otherwise, as RAdam does."""
_CHANGED = {"lr": 0.01, "weight_decay": 0.0, "foreach": None, "fused": None, "capturable": False}
"""Settings of the scratch optimizers: a scheduler may begin at 0, and decay moves a parameter without any gradient."""


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
    distinct = {_without_names(settings): settings for settings in map(_settings, groups)}
    shares = (_kept(type(optimizer), optimizer.defaults, settings) for settings in distinct.values())
    return max(shares, default=0.0), type(optimizer).__name__


def _without_names(settings: Mapping[str, Any]) -> str:
    return repr({name: value for name, value in settings.items() if not isinstance(value, str)})


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _CHANGED.get(name, value) for name, value in group.items() if name != "params"}


def _kept(kind: type[Optimizer], defaults: Mapping[str, Any], group: Mapping[str, Any]) -> float:
    parameters = inspect.signature(kind).parameters
    arguments = {name: value for name, value in _settings(defaults).items() if name in parameters}

    def build(scratch: nn.Parameter) -> Optimizer:
        return kind([{**group, "params": [scratch]}], **arguments)

    try:
        share = float(_update(build, COEFFICIENT) / _update(build, 1.0))
    except Exception:
        # The class is the user's: what it needs beyond its settings, and what it raises without, cannot be known.
        # Nor can anything be read under FakeTensorMode.
        return 0.0
    return share if math.isfinite(share) else 0.0


def _update(build: Callable[[nn.Parameter], Optimizer], coefficient: float) -> Tensor:
    """Return how far a scratch matrix moves in the second half of the steps, as a norm (0-dim)."""
    with torch.random.fork_rng([]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # any would be about the scratch parameter
        torch.default_generator.manual_seed(0)  # not those of devices, which are not restored
        scratch = nn.Parameter(0.1 * torch.randn(4, 4, device="cpu"))
        gradients = torch.randn(STEPS, 4, 4, device="cpu")
        optimizer = build(scratch)
        if hasattr(optimizer, "train"):  # schedule-free optimizers need it
            optimizer.train()
        before = scratch.detach().clone()
        for index, gradient in enumerate(gradients):
            if index == STEPS // 2:
                before = scratch.detach().clone()
            scratch.grad = coefficient * gradient
            _step(optimizer)
        return (scratch.detach() - before).norm()


def _step(optimizer: Optimizer) -> None:
    # Below torch's wrapper of every step, so that hooks that are registered for all optimizers do not fire.
    step = type(optimizer).step
    getattr(step, "__wrapped__", step)(optimizer)
