"""Copies of a training on the CPU, of everything or of one encoder, and the rewind to them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from modbalance import Run


def take(run: Run, modality: str | None = None) -> dict[str, Any]:
    """Return copies on the CPU of weights, buffers and optimizer state, of one encoder or of everything.

    Of everything includes the options of the parameter groups, such as learning rates.
    """
    optimizer = run.optimizer_state()
    if modality is not None:
        indices = _indices(run, modality)
        optimizer = {"state": {i: kept for i, kept in optimizer["state"].items() if i in indices}}
    weights = {str(i): tensor for i, tensor in enumerate(_tensors(run, modality))}
    return {"weights": _copied(weights), "optimizer": _copied(optimizer)}


@torch.no_grad()
def put_back(run: Run, taken: dict[str, Any], modality: str | None = None) -> None:
    """Restore the weights, buffers and optimizer state that `take` copied for the same modality."""
    for i, tensor in enumerate(_tensors(run, modality)):
        tensor.copy_(taken["weights"][str(i)])
    optimizer = copy.deepcopy(taken["optimizer"])
    if modality is not None:
        now, indices = run.optimizer_state(), _indices(run, modality)
        others = {i: kept for i, kept in now["state"].items() if i not in indices}
        optimizer = {**now, "state": others | optimizer["state"]}
    run.load_optimizer_state(optimizer)


def _tensors(run: Run, modality: str | None) -> list[Tensor]:
    """Return parameters and buffers, each once, in an order that depends on model and optimizer alone."""
    if modality is None:
        modules: Sequence[nn.Module] = [run.model] if run.model is not None else []
        parameters = run.optimized_parameters()
    else:
        modules, parameters = run.encoders(modality), iter(p for _, p in run.parameters(modality))
    inside: Iterator[Tensor] = chain.from_iterable(chain(m.parameters(), m.buffers()) for m in modules)
    return list({id(tensor): tensor for tensor in chain(parameters, inside)}.values())


def _indices(run: Run, modality: str) -> set[int]:
    own = {id(p) for _, p in run.parameters(modality)}
    return {i for i, p in enumerate(run.optimized_parameters()) if id(p) in own}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return copy.deepcopy(value)
