"""The plain loop that a framework's training must equal: same model, data, method and clip."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from modbalance import BalancedOptimizer
from support.models import Multimodal
from support.training import balanced, batches, head_for, multimodal, sgd

METHODS = ("ogm", "cggm", "mslr", "agm", "dgl")
# Options under which a clip before modulation is another training, in a few steps.
OPTIONS: dict[str, dict[str, Any]] = {
    "ogm": {"param_filter": "all"},
    "cggm": {"coeff_clip": (-2.0, 2.0)},
    "mslr": {"init": {"a": 0.3, "b": 3.0}},
    # The form that is chosen by itself depends on the class of the model, and with it the rounding.
    "agm": {"clip_trigger": 0.1, "coalitions": "full"},
    "relearning": {"period": 1, "offset": -1},
}
CLIP = 0.2
EPOCHS = 2
STEPS = 5
SIZE = 6


def dataset(count: int = STEPS, seed: int = 1, dtype: torch.dtype = torch.float32) -> TensorDataset:
    """Return as many samples as ``count`` batches have, two inputs and a target each."""
    data = batches(multimodal(), count, SIZE, seed, dtype)
    *inputs, target = zip(*((*inputs, target) for inputs, target in data), strict=True)
    return TensorDataset(*(torch.cat(each) for each in inputs), torch.cat(target))


def loader(count: int = STEPS, seed: int = 1, dtype: torch.dtype = torch.float32) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(dataset(count, seed, dtype), batch_size=SIZE)


def wrapped(model: Multimodal, method: str, *, around: nn.Module | None = None, **arguments: Any) -> BalancedOptimizer:
    """Return the optimizer of a method with options that show within a few steps; the caller begins the training.

    Args:
        model: The small model.
        method: The method.
        around: The module that is trained, with the small model as its child ``net``; ``None``: the model itself.
        arguments: Further arguments of BalancedOptimizer.
    """
    options = OPTIONS.get(method, {}) | arguments
    if around is None:
        return balanced(model, method, begin=False, **options)
    paths = {name: f"net.{path}" for name, path in model.paths.items()}
    return BalancedOptimizer(sgd(model), method, model=around, modalities=paths, fusion="net.fusion", **options)


@contextmanager
def accelerate_as_new() -> Iterator[None]:
    """Take state of Accelerate and variables of the environment back after the body: frameworks leave both."""
    before = dict(os.environ)
    try:
        yield
    finally:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        os.environ.clear()
        os.environ.update(before)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()


def metrics_of(epoch: int) -> Mapping[str, Mapping[str, float]]:
    return {"loss": {"a": 1.0 + epoch, "b": 1.0 / (epoch + 1)}, "accuracy": {"a": 0.3, "b": 0.5}}


def plain(
    method: str,
    *,
    clip: float | None = None,
    epochs: int = EPOCHS,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    by_value: bool = False,
    around_loss: Callable[[], AbstractContextManager[object]] = nullcontext,
    head: str | None = None,
    **arguments: Any,
) -> Multimodal:
    """Train in a plain loop: modulate, clip, step; end each epoch.

    Args:
        method: The method.
        clip: Largest norm, or value, of the gradients.
        epochs: Number of epochs.
        accumulate: Micro-batches of a step.
        autocast: Type in which the model runs; the loss is in single precision.
        dtype: Type of model and data.
        by_value: Whether the clip is one of values.
        around_loss: Context of forward and criterion call.
        head: Head of the model; ``None``: one that the method needs.
        arguments: Further arguments of BalancedOptimizer.
    """
    model = multimodal(head=head or head_for(method), dtype=dtype)
    optimizer = wrapped(model, method, **arguments)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    train, val = loader(dtype=dtype), loader(2, seed=3, dtype=dtype)
    optimizer.begin(train=train, val=val)
    for epoch in range(epochs):
        model.train()
        for index, (*inputs, target) in enumerate(train):
            with around_loss():
                with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                    logits = model(*inputs)
                loss = criterion(logits.to(dtype), target) / accumulate
            loss.backward()
            if (index + 1) % accumulate == 0 or index + 1 == len(train):
                optimizer.modulate()
                if clip is not None:
                    clips = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
                    clips(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
        optimizer.end_epoch(train=train, val=val, metrics=metrics_of(epoch))
    return model
