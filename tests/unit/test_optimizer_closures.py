"""Closures go on to the inner optimizer, and both passes of SAM are modulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning
from support.methods import METHODS, acting
from support.models import Multimodal
from support.training import Batch, assert_close, assert_same, balanced, batches, multimodal, multimodal_for, sgd
from support.two_passes import SAM, Polyak

REFUSING = ("mla",)
"""Methods that step parameters themselves, which two passes do not allow."""


def criterion_of(optimizer: Optimizer) -> Any:
    loss_fn = nn.CrossEntropyLoss()
    return optimizer.criterion(loss_fn) if isinstance(optimizer, BalancedOptimizer) else loss_fn


def by_two_calls(model: nn.Module, optimizer: Any, data: list[Batch]) -> nn.Module:
    criterion = criterion_of(optimizer)
    for inputs, target in data:
        criterion(model(*inputs), target).backward()
        optimizer.first_step(zero_grad=True)
        criterion(model(*inputs), target).backward()
        optimizer.second_step(zero_grad=True)
    return model


def by_closure(model: nn.Module, optimizer: Any, data: list[Batch], *, has_first_pass: bool = True) -> nn.Module:
    criterion = criterion_of(optimizer)
    for inputs, target in data:

        def closure(inputs: tuple[Tensor, ...] = inputs, target: Tensor = target) -> Tensor:
            loss: Tensor = criterion(model(*inputs), target)
            loss.backward()
            return loss

        if has_first_pass:
            closure()
        optimizer.step(closure)
        optimizer.zero_grad()
    return model


def by_hand(model: Multimodal, method: str, data: list[Batch], lr: float = 0.1, rho: float = 0.05) -> nn.Module:
    """SAM of the modulated gradient, written out: `modulate()` in both passes, and no wrapper around SAM."""
    optimizer = balanced(model, method, **acting(method))
    criterion = criterion_of(optimizer)
    for inputs, target in data:
        first = modulated(optimizer, lambda: criterion(model(*inputs), target))  # noqa: B023
        norm = torch.cat([gradient.flatten() for gradient in first]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), first, strict=True):
                parameter.add_(rho * gradient / norm)
        second = modulated(optimizer, lambda: criterion(model(*inputs), target))  # noqa: B023
        with torch.no_grad():
            for parameter, moved, gradient in zip(model.parameters(), first, second, strict=True):
                parameter.sub_(rho * moved / norm).sub_(lr * gradient)
    return model


def modulated(optimizer: BalancedOptimizer, loss: Any) -> list[Tensor]:
    loss().backward()
    optimizer.modulate()
    gradients = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    return gradients


@pytest.mark.parametrize("train", [by_two_calls, by_closure])
@pytest.mark.parametrize("method", [method for method in METHODS[1:] if method not in REFUSING])
def test_both_passes_of_sam_are_modulated_and_one_step_is_committed(method: str, train: Any) -> None:
    model = multimodal()
    optimizer = balanced(model, method, SAM(model.parameters()), clip_grad_norm=1e9, **acting(method))
    train(model, optimizer, batches(model, 3))
    assert optimizer._lifecycle.training.steps == 3


@pytest.mark.parametrize("method", REFUSING)
def test_sam_is_refused_where_parameters_take_steps_of_their_own(method: str) -> None:
    model = multimodal_for(method)
    with pytest.raises(ConfigError, match=r"Found SAM, whose step takes gradients at two places.*SGD or AdamW"):
        balanced(model, method, SAM(model.parameters()))


@pytest.mark.parametrize("train", [by_two_calls, by_closure])
@pytest.mark.parametrize("method", ["ogm", "mslr", "dgl"])
def test_sam_takes_both_of_its_gradients_modulated(method: str, train: Any) -> None:
    model, expected, bare = multimodal(), multimodal(), multimodal()
    optimizer = balanced(model, method, SAM(model.parameters()), **acting(method))
    data = batches(model, 3)
    train(model, optimizer, data)
    assert_close(model, by_hand(expected, method, data), 1e-6)
    by_two_calls(bare, SAM(bare.parameters()), data)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(model, bare, 1e-4)


@pytest.mark.parametrize("train", [by_two_calls, by_closure])
def test_without_a_method_it_is_bare_sam(train: Any) -> None:
    model, bare = multimodal(), multimodal()
    data = batches(model, 3)
    train(model, balanced(model, "none", SAM(model.parameters())), data)
    assert_same(model, train(bare, SAM(bare.parameters()), data))


def test_a_second_pass_past_the_criterion_is_named() -> None:
    model = multimodal()
    optimizer: Any = balanced(model, "ogm", SAM(model.parameters()))
    criterion = criterion_of(optimizer)
    inputs, target = batches(model, 1)[0]
    criterion(model(*inputs), target).backward()
    optimizer.first_step(zero_grad=True)
    nn.CrossEntropyLoss()(model(*inputs), target).backward()
    with pytest.warns(ModbalanceWarning, match=r"opt\.criterion"):
        optimizer.second_step()


def test_a_closure_past_the_criterion_is_named() -> None:
    model = multimodal()
    optimizer: Any = balanced(model, "ogm", SAM(model.parameters()))
    criterion = criterion_of(optimizer)
    inputs, target = batches(model, 1)[0]
    criterion(model(*inputs), target).backward()
    with pytest.warns(ModbalanceWarning, match=r"opt\.criterion"):
        optimizer.step(lambda: nn.CrossEntropyLoss()(model(*inputs), target).backward())
    assert optimizer._lifecycle.training.steps == 0


def test_the_learning_rate_of_sam_is_not_scaled() -> None:
    model = multimodal()
    with pytest.raises(ConfigError, match=r"Found an optimizer of two passes.*mode=.grad."):
        balanced(model, "mslr", SAM(model.parameters()), mode="lr")


@pytest.mark.parametrize("method", ["none", "ogm"])
def test_an_optimizer_that_reads_the_loss_is_given_the_closure(method: str) -> None:
    model, bare = multimodal(), multimodal()
    optimizer = balanced(model, method, Polyak(model.parameters()))
    data = batches(model, 3)
    by_closure(model, optimizer, data, has_first_pass=False)
    by_closure(bare, Polyak(bare.parameters()), data, has_first_pass=False)
    if method == "none":
        assert_same(model, bare)
    else:
        assert optimizer.metrics()["ogm/coefficient/a"] * optimizer.metrics()["ogm/coefficient/b"] < 1


def test_micro_batches_before_the_closure_are_part_of_its_step() -> None:
    """As Lightning accumulates: all but the last backward happen before `step`, which gets a closure for the last."""
    model, expected = multimodal(), multimodal()
    first, second = batches(model, 2)
    optimizer, plain = balanced(model, "ogm", sgd(model)), balanced(expected, "ogm", sgd(expected))
    criterion, other = criterion_of(optimizer), criterion_of(plain)

    criterion(model(*first[0]), first[1]).backward()
    optimizer.step(lambda: criterion(model(*second[0]), second[1]).backward())
    for inputs, target in (first, second):
        other(expected(*inputs), target).backward()
    plain.step()

    assert_same(model, expected)
