"""Helpers for trainings in tests: an optimizer around a small model, batches, steps, comparison of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.optim import SGD, Optimizer

from modbalance import BalancedOptimizer
from modbalance._plugins import load_method
from support.models import AudioVisual, Multimodal, SharedFusion

Batch = tuple[tuple[Tensor, ...], Tensor]


def multimodal(
    names: Sequence[str] = ("a", "b"), head: str = "concat", seed: int = 0, dtype: torch.dtype = torch.float32
) -> Multimodal:
    """Return a small model with weights that depend on ``seed`` alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Multimodal(names, head).to(dtype)


def head_for(method: Any) -> str:
    """Return the head of a small model that a method, or one by this name, needs."""
    given = load_method(method) if isinstance(method, str) and method != "none" else method
    needs = getattr(given, "needs", ())
    return "shared" if "shared_head" in needs else "concat"


def multimodal_for(method: Any, **arguments: Any) -> Multimodal:
    """Return the small model with a head that a method needs."""
    return multimodal(head=head_for(method), **arguments)


def audio_visual_for(method: Any) -> AudioVisual:
    """Return the reference audio-visual model with a head that a method needs."""
    return audio_visual((lambda: SharedFusion(8, 6)) if head_for(method) == "shared" else None)


def audio_visual(fusion: Callable[[], nn.Module] | None = None, seed: int = 0) -> AudioVisual:
    """Return the reference audio-visual model with weights that depend on ``seed`` alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return AudioVisual() if fusion is None else AudioVisual(fusion)


def batches(
    model: nn.Module, count: int, size: int = 6, seed: int = 1, dtype: torch.dtype = torch.float32
) -> list[Batch]:
    """Return ``count`` batches for one of the small models."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator).to(dtype)

    def draw_one() -> Batch:
        if isinstance(model, Multimodal):
            inputs = tuple(draw(5) for _ in model.encoders)
            return inputs, torch.randint(3, (size,), generator=generator)
        return (draw(8, 8), draw(3, 2, 8, 8)), torch.randint(6, (size,), generator=generator)

    return [draw_one() for _ in range(count)]


def sgd(model: nn.Module, lr: float = 0.1) -> Optimizer:
    return SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)


def balanced(
    model: nn.Module,
    method: Any = "ogm",
    inner: Optimizer | list[Optimizer] | None = None,
    *,
    begin: bool = True,
    **arguments: Any,
) -> BalancedOptimizer:
    """Return a BalancedOptimizer for one of the small models; OGM modulates all parameters unless told otherwise.

    Methods that need data before the first step get batches that the model fits, unless the caller gives them others.
    """
    if isinstance(model, Multimodal):
        described: dict[str, Any] = {"modalities": model.paths, "fusion": "fusion"}
        if method in ("ogm", "ogm_ge"):
            described["param_filter"] = "all"
    else:
        described = {"modalities": {"audio": "audio_net", "visual": "visual_net"}, "fusion": "fusion_module"}
    optimizer = BalancedOptimizer(inner or sgd(model), method, model=model, **(described | arguments))
    if begin and optimizer._lifecycle.hooks.implementers("modbalance_begin"):
        dtype = next(model.parameters()).dtype
        loader = [(*inputs, target) for inputs, target in batches(model, 2, dtype=dtype)]
        optimizer.begin(train=loader, val=loader)
    return optimizer


def train(model: nn.Module, optimizer: Optimizer, data: Iterable[Batch], criterion: Any = None) -> nn.Module:
    """Take one step per batch, and return the model."""
    if criterion is None:
        loss_fn = nn.CrossEntropyLoss()
        criterion = optimizer.criterion(loss_fn) if isinstance(optimizer, BalancedOptimizer) else loss_fn
    for inputs, target in data:
        optimizer.zero_grad()
        criterion(model(*inputs), target).backward()
        optimizer.step()
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(actual: nn.Module | dict[str, Tensor], expected: nn.Module | dict[str, Tensor]) -> None:
    """Assert that two models are equal bit for bit."""
    a, b = (weights(each) if isinstance(each, nn.Module) else each for each in (actual, expected))
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"differ: {different}"


def assert_close(actual: nn.Module, expected: nn.Module, atol: float) -> None:
    """Assert that two models are equal to ``atol``."""
    a, b = weights(actual), weights(expected)
    assert a.keys() == b.keys()
    for name in a:
        error = (a[name].double() - b[name].double()).abs().max().item()
        assert error <= atol, f"{name} differs by {error}"


def steps_on_fake_tensors(build: Callable[[AudioVisual], BalancedOptimizer]) -> int:
    """Take two steps on tensors without values, where reading one raises; return how many of them a method acted in."""
    with FakeTensorMode():
        model = audio_visual()
        optimizer = build(model)
        data = [
            ((torch.randn(8, 8, 8), torch.randn(8, 3, 2, 8, 8)), torch.zeros(8, dtype=torch.long)) for _ in range(2)
        ]
        train(model, optimizer, data)
    return optimizer._lifecycle.training.steps
