"""Optimizers of a user's class and settings on a scratch matrix: how they move it is measured, and leaves no trace."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Build = Callable[[nn.Parameter], Optimizer]
_CHANGED = {"lr": 0.01, "weight_decay": 0.0, "foreach": None, "fused": None, "capturable": False}
"""Settings of the scratch optimizers: a scheduler may begin at 0, and decay moves a parameter without any gradient."""


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter group, changed for a scratch optimizer."""
    return {name: _CHANGED.get(name, value) for name, value in group.items() if name != "params"}


def builder(kind: type[Optimizer], defaults: Mapping[str, Any], group: Mapping[str, Any]) -> Build:
    """Return a function from a scratch matrix to an optimizer of it.

    What it raises is not known: a class may need more than parameters and settings.

    Args:
        kind: Class of the optimizer.
        defaults: Its defaults, of which the constructor gets what it knows.
        group: Settings of the parameter group.
    """
    parameters = inspect.signature(kind).parameters
    arguments = {name: value for name, value in settings_of(defaults).items() if name in parameters}
    return lambda scratch: kind([{**group, "params": [scratch]}], **arguments)


@contextmanager
def scratch_of(build: Build) -> Iterator[tuple[nn.Parameter, Callable[[Tensor], None]]]:
    """Yield a scratch matrix, (4, 4), and a function that takes a step along a gradient of it; both on the CPU.

    The matrix, and numbers that are drawn in the body, are the same in every call.
    """
    with torch.random.fork_rng([]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # any would be about the scratch parameter
        torch.default_generator.manual_seed(0)  # not those of devices, which are not restored
        scratch = nn.Parameter(0.1 * torch.randn(4, 4, device="cpu"))
        optimizer = build(scratch)
        if hasattr(optimizer, "train"):  # schedule-free optimizers need it
            optimizer.train()
        # Below torch's wrapper of every step, so that hooks that are registered for all optimizers do not fire.
        step = type(optimizer).step
        bare = getattr(step, "__wrapped__", step)

        def take(gradient: Tensor) -> None:
            scratch.grad = gradient
            bare(optimizer)

        yield scratch, take
