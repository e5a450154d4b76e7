"""Measures whether an optimizer's update keeps its size when the gradients are scaled, on a scratch parameter.

A method that scales gradients by a coefficient then has almost no effect: Adam, RMSprop, Lion, Muon and others divide
gradients by their own running size, take their sign, or make them orthogonal.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENT = 0.01
KEPT = 0.5
"""Share of its size that the update of a scale-invariant optimizer keeps under `COEFFICIENT`, at least."""
STEPS = 20
"""Number of scratch steps, of which the second half is measured: some optimizers begin otherwise, as RAdam does."""
_CHANGED = {"lr": 0.01, "weight_decay": 0.0, "foreach": None, "fused": None, "capturable": False}
"""Settings of the scratch optimizers: a scheduler may begin at 0, and decay moves a parameter without any gradient."""


def is_scale_invariant(optimizer: Optimizer) -> bool:
    """Return whether most of the update remains, in any parameter group, when all gradients are multiplied by 0.01.

    Further optimizers of the same class and settings step a scratch matrix. The optimizer itself, its state and the
    global random state stay as they are. Classes that cannot be built from parameters and settings alone, and those
    whose step needs a closure, count as not invariant.
    """
    groups = {repr(settings): settings for settings in map(_settings, optimizer.param_groups)}
    return any(_keeps_its_size(type(optimizer), optimizer.defaults, settings) for settings in groups.values())


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _CHANGED.get(name, value) for name, value in group.items() if name != "params"}


def _keeps_its_size(kind: type[Optimizer], defaults: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    parameters = inspect.signature(kind).parameters
    arguments = {name: value for name, value in _settings(defaults).items() if name in parameters}

    def build(scratch: nn.Parameter) -> Optimizer:
        return kind([{**group, "params": [scratch]}], **arguments)

    try:
        return bool(_update(build, COEFFICIENT) > KEPT * _update(build, 1.0))
    except Exception:
        # The class is the user's: what it needs beyond its settings, and what it raises without, cannot be known.
        # Nor can anything be read under FakeTensorMode.
        return False


def _update(build: Callable[[nn.Parameter], Optimizer], coefficient: float) -> Tensor:
    """Return how far a scratch matrix moves in the second half of the steps, as a norm (0-dim)."""
    with torch.random.fork_rng([]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they speak of the scratch parameter
        torch.manual_seed(0)
        scratch = nn.Parameter(0.1 * torch.randn(4, 4, device="cpu"))
        gradients = torch.randn(STEPS, 4, 4, device="cpu")
        optimizer = build(scratch)
        if hasattr(optimizer, "train"):  # schedule-free optimizers ask for it
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
