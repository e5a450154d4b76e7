"""What an optimizer's update consists of: whether its weight decay is decoupled, and whether it follows p_new - p_old.

Both are read where the optimizer declares them, else measured on a scratch matrix, never read from names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import ASGD, SGD, AdamW, Optimizer

from modbalance._joint import parts_of
from modbalance._nested import nested
from modbalance._scratch import Build, builder, scratch_of, settings_of
from modbalance.errors import ConfigError

DECLARED = "decoupled_weight_decay"
"""Setting by which torch's optimizers say it; AdamW has it from torch 2.7 on."""
_DECAY = 0.5
_STEPS = 12  # Lookahead returns to its slow weights after 5 or 6

_GRADIENT = 'leave `apply="update"` out'


def check_update(optimizer: Optimizer) -> None:
    """Raise a ConfigError for an optimizer whose step is no update that can be scaled when it is done."""
    for each in parts_of(optimizer):
        _check(each)


def _check(optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    if hasattr(optimizer, "second_step"):
        raise ConfigError(
            '`apply="update"` should scale the update of one pass. Found '
            f"{name}, whose step takes two, each with coefficients of its own: {_GRADIENT}."
        )
    if (closure := inspect.signature(optimizer.step).parameters.get("closure")) and closure.default is closure.empty:
        raise ConfigError(
            '`apply="update"` should scale the update of one gradient. Found '
            f"{name}, whose step evaluates a closure several times, each with coefficients of its own: {_GRADIENT}."
        )
    if any(_first(optimizer, group, _depends_on_place) for group in optimizer.param_groups):
        raise ConfigError(
            '`apply="update"` should change weights that the optimizer reads anew in each step. Found '
            f"{name}, which keeps weights, or an average of them, in its state, where the whole update would stay: "
            f"{_GRADIENT}."
        )


def is_decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Return whether the weight decay of a group is the factor 1 - lr * weight_decay on the weights.

    Not that of SGD and ASGD: torch adds it to the gradient, where momentum takes it up. That of AdamW is.

    Raises:
        ConfigError: There is weight decay, of a kind that is neither declared nor can be measured.
    """
    if DECLARED in group:
        return bool(group[DECLARED])
    if (
        not group.get("weight_decay")
        or "lr" not in group
        or any(isinstance(each, SGD | ASGD) for each in nested(optimizer))
    ):
        return False
    if any(isinstance(each, AdamW) for each in nested(optimizer)):
        return True  # torch 2.6 does not declare it, and nothing can be measured under FakeTensorMode
    found = _first(optimizer, group, _decays_apart)
    if found is None:
        raise ConfigError(
            '`apply="update"` leaves decoupled weight decay out of what it scales, and should know whether that of '
            f"{type(optimizer).__name__} is. Found that a second one cannot be built from parameters and settings "
            "alone to measure it: set its `weight_decay` to 0, give its groups the key "
            f"'{DECLARED}' (True or False), or {_GRADIENT}."
        )
    return found


def _first(optimizer: Optimizer, group: Mapping[str, Any], measure: Callable[[Build], bool]) -> bool | None:
    """Return what is measured of the optimizer, or of one that it wraps; ``None`` where no class can be built."""
    for each in nested(optimizer):
        settings = settings_of(group)
        if group.get("weight_decay"):
            settings["weight_decay"] = _DECAY if measure is _decays_apart else 0.0
        try:
            return measure(builder(type(each), each.defaults, settings))
        except Exception:
            continue  # as in `_invariance`: what a class of the user raises cannot be known
    return None


def _decays_apart(build: Build) -> bool:
    """Return whether without gradients each step multiplies the weights by 1 - lr * weight_decay."""
    with scratch_of(build) as (scratch, take):
        expected = scratch.detach().clone()
        for _ in range(2):
            take(torch.zeros_like(scratch))
            expected *= 1 - settings_of({"lr": None})["lr"] * _DECAY
        return bool(torch.allclose(scratch.detach(), expected, rtol=1e-5, atol=0))


def _depends_on_place(build: Build) -> bool:
    """Return whether updates become others where the weights are put back after each: then the state holds weights."""
    free, held = (_updates(build, put_back=put_back) for put_back in (False, True))
    apart = [float((a - b).norm()) > 0.5 * float(a.norm()) for a, b in zip(free, held, strict=True)]
    return any(apart)


def _updates(build: Build, *, put_back: bool) -> list[Tensor]:
    with scratch_of(build) as (scratch, take):
        gradient, found = torch.randn(4, 4, device="cpu"), []
        for _ in range(_STEPS):
            before = scratch.detach().clone()
            take(gradient.clone())
            found.append(scratch.detach() - before)
            if put_back:
                scratch.detach().copy_(before)
        return found
