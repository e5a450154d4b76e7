"""Gradients that are changed in place between backward and modulation, as clips of frameworks do, are named once."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from modbalance import BalancedOptimizer, ModbalanceWarning
from support.methods import acting
from support.training import balanced, batches, multimodal, train

METHODS = ("ogm", "ogm_ge", "cggm", "mslr")
Between = Callable[[nn.Module, BalancedOptimizer], object]


def clip_norm(model: nn.Module, optimizer: BalancedOptimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


def clip_values(model: nn.Module, optimizer: BalancedOptimizer) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 0.5)


def modulate_then_clip(model: nn.Module, optimizer: BalancedOptimizer) -> None:
    optimizer.modulate()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


def nothing(model: nn.Module, optimizer: BalancedOptimizer) -> None:
    pass


def steps(method: str, between: Between, *, micro_batches: int = 1, in_closure: bool = False, **arguments: Any) -> None:
    model = multimodal()
    optimizer = balanced(model, method, **acting(method), **arguments)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    data = batches(model, 3 * micro_batches)
    for step in range(3):
        optimizer.zero_grad(set_to_none=False)

        def closure(step: int = step) -> None:
            for inputs, target in data[step * micro_batches : (step + 1) * micro_batches]:
                criterion(model(*inputs), target).backward()
            between(model, optimizer)

        if in_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


@pytest.mark.parametrize("in_closure", [False, True])
@pytest.mark.parametrize("clip", [clip_norm, clip_values])
@pytest.mark.parametrize("method", METHODS)
def test_a_clip_before_the_modulation_is_named_once(method: str, clip: Between, in_closure: bool) -> None:
    with pytest.warns(ModbalanceWarning, match=r"changed in place .*`opt\.modulate\(\)` before it") as given:
        steps(method, clip, in_closure=in_closure)
    assert len(given) == 1


@pytest.mark.parametrize("between", [nothing, modulate_then_clip])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_backwards_modulations_and_own_clips_are_no_such_change(
    method: str, micro_batches: int, between: Between
) -> None:
    steps(method, between, micro_batches=micro_batches)
    steps(method, between, micro_batches=micro_batches, clip_grad_norm=0.1)


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_unscaling_is_no_such_change(by_hand: bool) -> None:
    model = multimodal()
    optimizer = balanced(model, "ogm")
    criterion, scaler = optimizer.criterion(nn.CrossEntropyLoss()), GradScaler("cpu", init_scale=8.0)
    for inputs, target in batches(model, 3):
        optimizer.zero_grad()
        scaler.scale(criterion(model(*inputs), target)).backward()
        if by_hand:
            scaler.unscale_(optimizer)
            modulate_then_clip(model, optimizer)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("method", ["none", "relearning"])
def test_methods_that_edit_no_gradients_give_no_warning(method: str) -> None:
    steps(method, clip_norm)


def test_a_copy_and_a_removed_wrapper_watch_for_themselves() -> None:
    model = multimodal()
    optimizer = balanced(model, "ogm")
    train(model, optimizer, batches(model, 1))
    other_model, other_optimizer = copy.deepcopy((model, optimizer))
    train(other_model, other_optimizer, batches(model, 1))
    optimizer.remove()
    assert not model.get_parameter("encoders.a.0.weight")._backward_hooks
    for _ in range(3):
        optimizer = balanced(model, "ogm")
    gc.collect()
    hooks = model.get_parameter("encoders.a.0.weight")._backward_hooks
    assert hooks is not None
    assert len(hooks) == 1
    with torch.no_grad():
        clip_norm(model, optimizer)
    optimizer.step()


def test_a_dry_run_changes_nothing_and_minds_nothing() -> None:
    steps("ogm", clip_norm, dry_run=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch looks at the loss
def test_a_backward_in_compiled_code_is_not_watched() -> None:
    model = multimodal()
    optimizer = balanced(model, "ogm")
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for inputs, target in batches(model, 2):
        optimizer.zero_grad()
        loss = criterion(model(*inputs), target)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward()
        optimizer.step()
    assert optimizer.metrics()["ogm/coefficient/a"] <= 1
