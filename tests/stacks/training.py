"""The training that each stack repeats: one small model, the same batches, every installed method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer, list_methods
from support.models import Multimodal
from support.stacks import STEPS, metrics_of, plain
from support.training import Batch, batches, head_for, multimodal, weights

EPOCHS = 3
LAST = EPOCHS * STEPS
"""Number of optimizer steps."""
MODALITIES = 2
OPTIONS: dict[str, dict[str, Any]] = {
    "agm": {"clip_trigger": 1e-3, "clip_norm": 0.1, "coalitions": "auto"},
    "cggm": {"coeff_clip": (-2.0, 2.0)},
    "inforeg": {},
    "mmcosine": {"scale": 3.0},
    "mses": {"patience": 0},
    "mslr": {"memory": 1, "init": {"a": 0.5}},
    "ogm": {"param_filter": "all"},
    "ogm_ge": {"param_filter": "all"},
    "opm": {"start_epoch": 0},
    "pmr": {"fraction": 1.0},
    "relearning": {"period": 1, "offset": -1, "reset_momentum": True},
}
"""Options with which a method acts within these steps, where its defaults do not."""

LOSS = nn.CrossEntropyLoss()
Weights = dict[str, Tensor]
Step = Callable[[Any, BalancedOptimizer, Any, Sequence[Tensor], Tensor], None]
"""Takes a step: ``(forward, optimizer, criterion, inputs, target)``."""


def methods() -> list[str]:
    """Return the built-in methods that are installed, found by their entry points, after ``none``."""
    return ["none", *(each.name for each in list_methods() if each.distribution == "modbalance")]


def options_of(method: str, **further: Any) -> dict[str, Any]:
    return OPTIONS.get(method, {}) | further


def built(model: Multimodal, method: str, inner: Any = None, seen: Any = None, **further: Any) -> BalancedOptimizer:
    """Return the optimizer of a method; ``seen`` is what the user passes as `model=`, default the bare model."""
    inner = inner or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    described: dict[str, Any] = {"modalities": model.paths, "fusion": "fusion"}
    return BalancedOptimizer(
        inner, method, model=model if seen is None else seen, **described, **options_of(method, **further)
    )


def data(rank: int | None = None) -> tuple[list[Batch], list[Batch]]:
    """Return batches of training and of validation, whole or the half of each that a rank has."""
    train, val = batches(multimodal(), STEPS), batches(multimodal(), 2, seed=3)
    if rank is None:
        return train, val
    part = slice(rank, None, MODALITIES)
    train, val = ([(tuple(x[part] for x in xs), target[part]) for xs, target in each] for each in (train, val))
    return train, val


def one_step(
    forward: Any, optimizer: BalancedOptimizer, criterion: Any, inputs: Sequence[Tensor], target: Tensor
) -> None:
    """Take a step of a plain loop."""
    optimizer.zero_grad()
    criterion(forward(*inputs), target).backward()
    optimizer.step()


def run(
    model: nn.Module,
    optimizer: BalancedOptimizer,
    *,
    forward: Any = None,
    take_step: Step = one_step,
    loss: Callable[..., Tensor] = LOSS,
    evaluate: Callable[[Any, Any], tuple[Tensor, Any]] | None = None,
    rank: int | None = None,
    first: int = 0,
    last: int = LAST,
) -> None:
    """Train from one step to another, with what comes before the first one and after each epoch.

    Args:
        model: The bare model.
        optimizer: The optimizer.
        forward: What is called with the inputs: a wrapped or compiled model; default the model.
        take_step: A step of the stack.
        loss: The user's loss.
        evaluate: Argument ``forward`` of `end_epoch`.
        rank: Number of the process, whose half of each batch is taken.
        first: Number of the first step.
        last: Number after that of the last step.
    """
    train, val = data(rank)
    loaders = [[(*inputs, target) for inputs, target in each] for each in (train, val)]
    criterion = optimizer.criterion(loss)
    optimizer.begin(train=loaders[0], val=loaders[1], forward=evaluate)
    for number in range(first, last):
        epoch, index = divmod(number, STEPS)
        model.train()
        take_step(model if forward is None else forward, optimizer, criterion, *train[index])
        if index == STEPS - 1:
            optimizer.end_epoch(train=loaders[0], val=loaders[1], metrics=metrics_of(epoch), forward=evaluate)


@functools.cache
def plain_loop(method: str, clip: float | None = None, noise: bool = True) -> Weights:
    """Return the weights after the plain loop, with a clip after modulation if one is given."""
    further = {} if noise else without_noise(method)
    return weights(plain(method, clip=clip, epochs=EPOCHS, **options_of(method, **further)))


@functools.cache
def bare_loop(method: str) -> Weights:
    """Return the weights after the plain loop without a method, with the model that a method needs."""
    return weights(plain("none", head=head_for(method), epochs=EPOCHS))


def without_noise(method: str) -> dict[str, Any]:
    """Return the option that takes the noise of a method away, which depends on the number of ranks."""
    return {"noise_scale": 0.0} if method == "ogm_ge" else {}


def distance(a: Weights, b: Weights) -> float:
    """Return the largest difference of a weight; NaN is infinite."""
    assert a.keys() == b.keys()
    largest = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    return largest if largest == largest else float("inf")
