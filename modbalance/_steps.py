"""Steps of an inner optimizer on other tensors than its own, or on some of its own; the optimizer is left alone."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance._joint import parts_of
from modbalance._nested import nested

State = dict[str, Any]
"""State of one parameter in an optimizer."""


def take_step(
    optimizer: Optimizer, stand_ins: Mapping[int, Tensor], state: defaultdict[Tensor, State] | None = None
) -> list[str]:
    """Step tensors by an optimizer as it is now, which is left alone; return names of settings that the step changed.

    Args:
        optimizer: The optimizer, or several as one.
        stand_ins: By identity of a parameter, the tensor with a gradient that takes its place.
        state: State of the tensors; ``None``: that of the optimizer, for parameters that stand in for themselves.
    """
    changed = []
    for part in parts_of(optimizer):
        groups = [
            {**group, "params": [stand_ins[id(p)] for p in group["params"] if id(p) in stand_ins]}
            for group in part.param_groups
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            continue
        before = [*map(_settings, groups), _counts(part)]
        copied: Any = object.__new__(type(part))
        copied.__dict__.update(part.__dict__)
        copied.param_groups, copied.state = groups, part.state if state is None else state
        step: Any = type(part).step
        bare = step.__wrapped__ if hasattr(step, "hooked") else step
        with torch.no_grad():
            bare(copied)
        after = [*map(_settings, groups), _counts(copied)]
        changed += [name for old, new in zip(before, after, strict=True) for name in new if new[name] != old.get(name)]
    return sorted(set(changed))


def coupling(optimizer: Optimizer) -> str | None:
    """Return why an optimizer cannot step single parameters, as a clause; ``None``: nothing is known against it."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if hasattr(optimizer, "second_step"):
        return "whose step takes gradients at two places"
    if closure is not None and closure.default is inspect.Parameter.empty:
        return "whose step calls a closure"
    if len([*nested(optimizer)]) > 1:
        return "which keeps another optimizer inside"
    return None


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if isinstance(value, int | float | str | None)}


def _counts(optimizer: Optimizer) -> dict[str, Any]:
    # Without flags, such as that of a warning which was given.
    return {name: value for name, value in vars(optimizer).items() if type(value) in (int, float)}


def idle_step(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Step parameters that have a gradient once more, along zeros; the gradients stand afterwards as before."""
    chosen = [(p, p.grad) for p in parameters if p.grad is not None]
    try:
        for p, gradient in chosen:
            p.grad = torch.zeros_like(gradient)
        take_step(optimizer, {id(p): p for p, _ in chosen})
    finally:
        for p, gradient in chosen:
            p.grad = gradient
