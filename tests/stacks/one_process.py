"""Stacks of one process, without a framework; each function returns the weights after the training."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.checkpoint import checkpoint

from modbalance import BalancedOptimizer
from stacks.training import LAST, Weights, built, run
from support.stacks import CLIP, STEPS
from support.training import head_for, multimodal_for, weights
from support.two_passes import SAM

SCALE = 1024.0


def plain(method: str) -> Weights:
    model = multimodal_for(method)
    run(model, built(model, method))
    return weights(model)


# Mixed precision


def autocast(method: str, dtype: torch.dtype) -> Weights:
    """Train under autocast, in half precision with a GradScaler."""
    model = multimodal_for(method)
    scaler = GradScaler("cpu", init_scale=SCALE, enabled=dtype is torch.float16)

    def step(forward: Any, optimizer: Any, criterion: Any, inputs: Sequence[Tensor], target: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = criterion(forward(*inputs), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def evaluate(forward: Any, batch: Any) -> tuple[Tensor, Any]:
        with torch.autocast("cpu", dtype):
            return forward(*batch[:-1]), batch[-1]

    run(model, built(model, method), take_step=step, evaluate=evaluate)
    return weights(model)


class Rounded(nn.Linear):
    """A layer that computes in another type than its weights have."""

    dtype: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return F.linear(x.to(self.dtype), self.weight.to(self.dtype), bias)


@functools.cache
def casts_by_hand(method: str, dtype: torch.dtype) -> Weights:
    """Train without autocast and GradScaler: the layers cast, and the gradients are scaled and unscaled by hand."""
    model = multimodal_for(method)
    # A head that takes steps of its own computes in the type of its weights, outside of autocast.
    own = [*model.fusion.modules()] if head_for(method) == "shared" else []
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.__class__ = Rounded
            layer.__dict__["dtype"] = layer.weight.dtype if layer in own else dtype
    scale = SCALE if dtype is torch.float16 else 1.0

    def step(forward: Any, optimizer: Any, criterion: Any, inputs: Sequence[Tensor], target: Tensor) -> None:
        optimizer.zero_grad()
        (criterion(forward(*inputs), target) * scale).backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad / scale
        optimizer.step()

    def loss(logits: Tensor, target: Tensor, **settings: Any) -> Tensor:
        return F.cross_entropy(logits.float(), target, **settings)

    run(model, built(model, method), take_step=step, loss=loss)
    return weights(model)


# Steps of another form


def accumulation(method: str) -> Weights:
    """Train with two micro-batches per step."""

    def step(forward: Any, optimizer: Any, criterion: Any, inputs: Sequence[Tensor], target: Tensor) -> None:
        optimizer.zero_grad()
        for half in (slice(None, None, 2), slice(1, None, 2)):
            (criterion(forward(*(x[half] for x in inputs)), target[half]) / 2).backward()
        optimizer.step()

    model = multimodal_for(method)
    run(model, built(model, method), take_step=step)
    return weights(model)


def own_clip(method: str) -> Weights:
    model = multimodal_for(method)
    run(model, built(model, method, clip_grad_norm=CLIP))
    return weights(model)


def compiled(method: str) -> Weights:
    torch.compiler.reset()
    model = multimodal_for(method)
    forward = torch.compile(model, backend="aot_eager")
    run(model, built(model, method, seen=forward), forward=forward)
    torch.compiler.reset()
    return weights(model)


def resumed(method: str) -> Weights:
    """Train to the middle of the second epoch, and go on from a checkpoint with a new model and optimizer."""
    middle = STEPS + STEPS // 2
    model = multimodal_for(method)
    optimizer = built(model, method)
    run(model, optimizer, last=middle)
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)

    again = multimodal_for(method, seed=5)
    continued = built(again, method)
    saved_model, saved_optimizer = torch.load(buffer, weights_only=True)
    again.load_state_dict(saved_model)
    continued.load_state_dict(saved_optimizer)
    run(again, continued, first=middle, last=LAST)
    return weights(again)


# Activation checkpointing


class Recomputed(nn.Sequential):
    """An encoder all but whose first layer runs again in the backward."""

    use_reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint(self._rest, self[0](x), use_reentrant=self.use_reentrant)
        return result

    def _rest(self, hidden: Tensor) -> Tensor:
        for layer in [*self][1:]:
            hidden = layer(hidden)
        return hidden


def checkpointed(method: str, use_reentrant: bool) -> Weights:
    model = multimodal_for(method)
    for name, encoder in model.encoders.items():
        assert isinstance(encoder, nn.Sequential)
        again = Recomputed(*encoder)
        again.use_reentrant = use_reentrant
        model.encoders[name] = again
    run(model, built(model, method))
    return weights(model)


# Coefficients on the update


def scaled(method: str, apply: str) -> Weights:
    """Train by plain descent, where an update is the learning rate times the gradient.

    Without momentum, decay and clip: a clip acts on modulated gradients, and with "update" on others.
    """
    model = multimodal_for(method)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    run(model, built(model, method, inner=inner, apply=apply, clip_grad_norm=1e9))
    return weights(model)


# Sharpness-aware minimization

RADIUS = 0.05


def sam(method: str) -> Weights:
    def step(forward: Any, optimizer: Any, criterion: Any, inputs: Sequence[Tensor], target: Tensor) -> None:
        for each in (optimizer.first_step, optimizer.second_step):
            criterion(forward(*inputs), target).backward()
            each(zero_grad=True)

    model = multimodal_for(method)
    run(model, built(model, method, inner=SAM(model.parameters(), lr=0.1, rho=RADIUS)), take_step=step)
    return weights(model)


@functools.cache
def sam_by_hand(method: str) -> Weights:
    """Train with plain descent: climb along the modulated gradient, go back, and step along the one found there."""
    model = multimodal_for(method)

    def step(
        forward: Any, optimizer: BalancedOptimizer, criterion: Any, inputs: Sequence[Tensor], target: Tensor
    ) -> None:
        optimizer.zero_grad()
        criterion(forward(*inputs), target).backward()
        optimizer.modulate()
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        before = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.add_(RADIUS * parameter.grad / norm)
        optimizer.zero_grad()
        criterion(forward(*inputs), target).backward()
        optimizer.modulate()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), before, strict=True):
                parameter.copy_(value)
        optimizer.step()

    run(model, built(model, method, inner=torch.optim.SGD(model.parameters(), lr=0.1)), take_step=step)
    return weights(model)
