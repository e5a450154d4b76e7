"""Several optimizers of one model, such as Muon and AdamW, are wrapped as one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, SGD, Adafactor, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from modbalance import BalancedOptimizer, CheckpointError, ConfigError, ModbalanceWarning
from support.methods import METHODS, acting
from support.optimizers import assert_same_state
from support.training import assert_same, balanced, batches, multimodal, multimodal_for, sgd, train, weights
from support.two_passes import SAM

Kinds = Callable[[nn.Module], list[Optimizer]]


def two_of_sgd(model: nn.Module) -> list[Optimizer]:
    parameters = list(model.parameters())
    return [SGD(part, lr=0.1, momentum=0.9, weight_decay=1e-4) for part in (parameters[:3], parameters[3:])]


def matrices_and_others(model: nn.Module) -> list[Optimizer]:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    return [Adafactor(matrices, lr=0.02), AdamW(others, lr=0.01)]


def wrapped(model: Any, method: str, kinds: Kinds) -> BalancedOptimizer:
    return balanced(model, method, kinds(model), **acting(method, convolutions=False))


@pytest.mark.parametrize("method", METHODS)
def test_parts_of_one_optimizer_are_that_optimizer(method: str) -> None:
    model, whole = multimodal_for(method), multimodal_for(method)
    data = batches(model, 4)
    train(model, wrapped(model, method, two_of_sgd), data)
    assert_same(model, train(whole, balanced(whole, method, sgd(whole), **acting(method, convolutions=False)), data))


@pytest.mark.filterwarnings("ignore:.*hardly follows.*")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_matrices_and_others_is_resumed_bit_for_bit(method: str) -> None:
    model, resumed = multimodal_for(method), multimodal_for(method)
    data = batches(model, 4)
    optimizer = wrapped(model, method, matrices_and_others)
    train(model, optimizer, data[:2])
    saved = copy.deepcopy(optimizer.state_dict())
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    assert indices == list(range(len(list(model.parameters()))))
    resumed.load_state_dict(model.state_dict())
    other = wrapped(resumed, method, matrices_and_others)
    other.load_state_dict(saved)
    assert_same_state(other.state_dict(), saved)
    assert_same(train(resumed, other, data[2:]), train(model, optimizer, data[2:]))


def test_without_a_method_each_takes_its_own_step() -> None:
    model, bare = multimodal(), multimodal()
    data = batches(model, 3)
    train(model, wrapped(model, "none", matrices_and_others), data)
    several = matrices_and_others(bare)
    for inputs, target in data:
        for each in several:
            each.zero_grad()
        nn.CrossEntropyLoss()(bare(*inputs), target).backward()
        for each in several:
            each.step()
    assert_same(model, bare)


def test_groups_and_state_are_those_of_the_optimizers() -> None:
    model = multimodal()
    first, adamw = matrices_and_others(model)
    optimizer = BalancedOptimizer([first, adamw], "none")
    assert [id(group) for group in optimizer.param_groups] == [id(first.param_groups[0]), id(adamw.param_groups[0])]
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer, batches(model, 1))
    scheduler.step()
    assert (first.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (0.01, 0.005)
    bias = model.get_parameter("encoders.a.0.bias")
    assert optimizer.state[bias] is adamw.state[bias]
    del optimizer.state[bias]
    assert bias not in adamw.state
    assert len(optimizer.state) == len(first.state) + len(adamw.state)
    assert repr(optimizer).startswith("BalancedOptimizer(none, Adafactor (")


def test_a_scaler_and_a_closure_serve_all() -> None:
    model, plain = multimodal(), multimodal()
    scaler = GradScaler("cpu", init_scale=8.0)
    optimizer, other = wrapped(model, "ogm", two_of_sgd), wrapped(plain, "ogm", two_of_sgd)
    criterion, same = (each.criterion(nn.CrossEntropyLoss()) for each in (optimizer, other))
    for inputs, target in batches(model, 2):
        optimizer.zero_grad()
        scaler.scale(criterion(model(*inputs), target)).backward()
        scaler.step(optimizer)
        scaler.update()
        calls: list[torch.Tensor] = []

        def closure(inputs: Any = inputs, target: Any = target, calls: list[torch.Tensor] = calls) -> torch.Tensor:
            other.zero_grad()
            loss = same(plain(*inputs), target)
            loss.backward()
            calls.append(loss)
            return loss

        assert other.step(closure) is calls[0]
        assert len(calls) == 1
    assert_same(model, plain)


def test_schedulers_that_move_momentum_name_what_they_miss() -> None:
    model = multimodal()
    optimizer = wrapped(model, "none", matrices_and_others)
    with pytest.raises(ValueError, match="momentum"):
        OneCycleLR(optimizer, 0.1, total_steps=4)
    OneCycleLR(optimizer, 0.1, total_steps=4, cycle_momentum=False)


def test_schedule_free_optimizers_are_switched() -> None:
    model = multimodal()
    free: Any = schedulefree.AdamWScheduleFree(model.encoders.parameters(), lr=0.01, warmup_steps=2)
    optimizer: Any = BalancedOptimizer([free, sgd(model.fusion)], "none")
    optimizer.train()
    train(model, optimizer, batches(model, 3))
    before = weights(model)
    optimizer.eval()
    assert not torch.equal(weights(model)["encoders.a.0.weight"], before["encoders.a.0.weight"])


def test_momentum_of_all_is_cleared() -> None:
    model = multimodal()
    optimizer = wrapped(model, "none", two_of_sgd)
    train(model, optimizer, batches(model, 1))
    run = optimizer._lifecycle.run
    assert run.can_clear_optimizer_state
    run.clear_optimizer_state(list(model.parameters()))
    assert not optimizer.state


def test_a_copy_is_independent() -> None:
    model = multimodal()
    optimizer = wrapped(model, "ogm", two_of_sgd)
    train(model, optimizer, batches(model, 1))
    other_model, other = copy.deepcopy((model, optimizer))
    before = weights(model)
    train(other_model, other, batches(model, 1))
    assert_same(weights(model), before)
    assert_same(train(model, optimizer, batches(model, 1)), other_model)


def test_the_notice_on_scales_names_the_optimizer() -> None:
    model = multimodal()
    with pytest.warns(ModbalanceWarning, match="update of (Adafactor|AdamW) hardly follows"):
        optimizer = wrapped(model, "ogm", matrices_and_others)
    assert "Adafactor and AdamW.step" in optimizer.describe()


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (lambda model: [], "Found an empty list"),
        (lambda model: [sgd(model), "adam"], "or a list of them. Found str"),
        (lambda model: [sgd(model), sgd(model)], "no parameter in common: each is updated once. Found one of shape"),
        (lambda model: [sgd(model.fusion), LBFGS(model.encoders.parameters())], "no closure. Found LBFGS"),
        (lambda model: [sgd(model.fusion), SAM(model.encoders.parameters())], "no closure. Found SAM"),
        (lambda model: [sgd(model.fusion), balanced(model, "none", sgd(model.encoders))], "Found BalancedOptimizer"),
    ],
)
def test_what_cannot_be_joined_is_refused(inner: Callable[[nn.Module], Any], words: str) -> None:
    model = multimodal()
    with pytest.raises(ConfigError, match=words):
        BalancedOptimizer(inner(model), "none")


def test_a_group_is_added_to_one_of_them() -> None:
    model = multimodal()
    optimizer = wrapped(model, "none", two_of_sgd)
    with pytest.raises(ConfigError, match="added to one of the optimizers"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_a_state_of_other_groups_changes_nothing() -> None:
    model = multimodal()
    optimizer = wrapped(model, "none", two_of_sgd)
    train(model, optimizer, batches(model, 1))
    before = copy.deepcopy(optimizer.state_dict())
    inner = optimizer._inner
    with pytest.raises(CheckpointError, match=r"should have \[3, 7\] parameters. Found \[10\]"):
        inner.load_state_dict(sgd(model).state_dict())
    assert_same_state(optimizer.state_dict(), before)
