"""Modulation before the clips of an Accelerator: equal to the plain loop, and refused where it cannot be so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning
from modbalance.accelerate import modulate_before_clip, unwrapped
from support.models import Multimodal
from support.stacks import CLIP, EPOCHS, METHODS, accelerate_as_new, loader, metrics_of, plain, wrapped
from support.training import assert_same, multimodal

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    with accelerate_as_new():
        yield


def accelerated(method: str, *, accumulate: int = 1, helps: bool = True, by_value: bool = False) -> Multimodal:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    bare = multimodal()
    balanced = wrapped(bare, method)
    criterion = balanced.criterion(nn.CrossEntropyLoss())
    model, optimizer, train = accelerator.prepare(bare, balanced, loader())
    if helps:
        modulate_before_clip(accelerator, optimizer)
    for epoch in range(EPOCHS):
        model.train()
        for *inputs, target in train:
            with accelerator.accumulate(model):
                accelerator.backward(criterion(model(*inputs), target))
                if accelerator.sync_gradients and by_value:
                    accelerator.clip_grad_value_(model.parameters(), 0.01)
                elif accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
        balanced.end_epoch(train=train, val=loader(2, seed=3), metrics=metrics_of(epoch))
    return bare


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_its_clip_comes_after_modulation(method: str, accumulate: int) -> None:
    assert_same(accelerated(method, accumulate=accumulate), plain(method, clip=CLIP, accumulate=accumulate))


@pytest.mark.parametrize("method", ["ogm", "cggm"])
def test_a_clip_by_value_comes_after_modulation(method: str) -> None:
    assert_same(accelerated(method, by_value=True), plain(method, clip=0.01, by_value=True))


def test_without_it_the_clip_is_named() -> None:
    with pytest.warns(ModbalanceWarning, match=r"call `opt\.modulate\(\)` before it"):
        accelerated("ogm", helps=False)


def test_a_clip_between_micro_batches_modulates_nothing() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    bare = multimodal()
    optimizer = wrapped(bare, "ogm")
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    modulate_before_clip(accelerator, accelerator.prepare(optimizer))
    *inputs, target = next(iter(loader()))
    with accelerator.accumulate(bare):
        criterion(bare(*inputs), target).backward()
        accelerator.clip_grad_norm_(bare.parameters(), 1e6)

    assert optimizer._lifecycle.pending is not None
    assert not optimizer._lifecycle.pending.steps


def test_an_unscaling_of_other_optimizers_modulates_nothing() -> None:
    accelerator = Accelerator(cpu=True)
    bare = multimodal()
    optimizer = wrapped(bare, "ogm")
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    prepared = accelerator.prepare(optimizer)
    other = torch.optim.SGD(bare.parameters(), 0.1)
    modulate_before_clip(accelerator, optimizer)
    *inputs, target = next(iter(loader()))
    criterion(bare(*inputs), target).backward()
    accelerator.unscale_gradients(other)
    assert not optimizer._lifecycle.pending.steps  # type: ignore[union-attr]
    accelerator.unscale_gradients([prepared])
    assert optimizer._lifecycle.pending.steps  # type: ignore[union-attr]


def prepared_before_it_was_wrapped(accelerator: Accelerator) -> BalancedOptimizer:
    model = multimodal()
    inner: Any = accelerator.prepare(torch.optim.SGD(model.parameters(), 0.1))
    return wrapped(model, "ogm", inner=inner)


def bare_sgd(accelerator: Accelerator) -> Any:
    return accelerator.prepare(torch.optim.SGD(multimodal().parameters(), 0.1))


@pytest.mark.parametrize(
    ("optimizer_of", "found"),
    [(bare_sgd, "Found SGD: wrap the optimizer before"), (prepared_before_it_was_wrapped, "prepared already: wrap")],
)
def test_optimizers_that_it_cannot_modulate_are_refused(optimizer_of: Any, found: str) -> None:
    accelerator = Accelerator(cpu=True)
    with pytest.raises(ConfigError, match=found):
        modulate_before_clip(accelerator, optimizer_of(accelerator))


def test_no_optimizer_and_deepspeed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    with pytest.raises(ConfigError, match=r"modulate_before_clip\(accelerator, opt\)`\. Found none"):
        modulate_before_clip(accelerator)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ConfigError, match=r"DeepSpeed.*`clip_grad_norm=` to BalancedOptimizer"):
        modulate_before_clip(accelerator, wrapped(multimodal(), "ogm"))


def test_the_optimizer_behind_a_prepared_one_is_found() -> None:
    optimizer = wrapped(multimodal(), "ogm")

    assert unwrapped(Accelerator(cpu=True).prepare(optimizer)) is optimizer
    assert unwrapped(optimizer) is optimizer
