"""Schedulers, scalers, hooks and distributed checkpoints of torch take BalancedOptimizer for a torch optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

from modbalance import BalancedOptimizer, ModbalanceWarning
from support.optimizers import INNER, assert_same_state, inner_of, wrap
from support.training import assert_close, assert_same, balanced, batches, multimodal, sgd, train, weights

over_all = pytest.mark.parametrize("name", INNER)


# Schedulers, scalers


@over_all
def test_step_lr_moves_the_rate_of_the_inner_optimizer(name: str) -> None:
    model = multimodal()
    optimizer = wrap(model, name)
    before = optimizer.param_groups[0]["lr"]
    scheduler = StepLR(optimizer, 1, gamma=0.1)

    train(model, optimizer, batches(model, 1))
    scheduler.step()

    assert inner_of(optimizer).param_groups[0]["lr"] == pytest.approx(0.1 * before)


@over_all
def test_reduce_on_plateau_moves_the_rate_of_the_inner_optimizer(name: str) -> None:
    model = multimodal()
    optimizer = wrap(model, name)
    before = optimizer.param_groups[0]["lr"]
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)

    for loss in (1.0, 2.0):
        scheduler.step(loss)

    assert inner_of(optimizer).param_groups[0]["lr"] == pytest.approx(0.5 * before)


def test_a_scheduler_may_be_attached_to_the_inner_optimizer_before_it_is_wrapped() -> None:
    model = multimodal()
    inner = sgd(model)
    scheduler = StepLR(inner, 1, gamma=0.1)
    optimizer = balanced(model, inner=inner)

    train(model, optimizer, batches(model, 1))
    scheduler.step()

    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_one_cycle_moves_rate_and_momentum_of_the_inner_optimizer() -> None:
    plain, wrapped = multimodal(), multimodal()
    rows = []
    for model, optimizer in ((plain, sgd(plain)), (wrapped, balanced(wrapped, "none"))):
        scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=6)
        inner = inner_of(optimizer) if isinstance(optimizer, BalancedOptimizer) else optimizer
        for batch in batches(model, 5):
            train(model, optimizer, [batch])
            scheduler.step()
            rows.append((inner.param_groups[0]["lr"], inner.param_groups[0]["momentum"]))

    assert rows[:5] == rows[5:]
    assert len(set(rows)) == 5
    assert_same(wrapped, plain)


@over_all
def test_a_scaler_unscales_and_steps(name: str) -> None:
    plain, wrapped = multimodal(), multimodal()
    data = batches(plain, 3)
    # Powers of two scale and unscale without rounding.
    for model, optimizer in ((plain, INNER[name](plain.parameters())), (wrapped, wrap(wrapped, name, "none"))):
        scaler = GradScaler("cpu", init_scale=2.0**8)
        loss_fn = nn.CrossEntropyLoss()
        for inputs, target in data:
            optimizer.zero_grad()
            scaler.scale(loss_fn(model(*inputs), target)).backward()
            scaler.step(optimizer)
            scaler.update()

    assert_same(wrapped, plain)


def test_leaves_unscaling_to_the_scaler_even_around_a_fused_optimizer() -> None:
    model = multimodal()
    inner = AdamW(model.parameters(), fused=True)
    optimizer = balanced(model, "none", inner)

    assert getattr(inner, "_step_supports_amp_scaling", False)
    assert not hasattr(optimizer, "_step_supports_amp_scaling")


def test_a_scaler_trains_a_fused_optimizer_as_without_the_wrapper() -> None:
    """Forwarding the attribute of a fused optimizer would step it by gradients that are still scaled."""
    plain, wrapped = multimodal(), multimodal()
    data = batches(plain, 3)
    inner = [SGD(model.parameters(), lr=0.1, fused=True) for model in (plain, wrapped)]
    for model, optimizer in ((plain, inner[0]), (wrapped, balanced(wrapped, "none", inner[1]))):
        scaler = GradScaler("cpu", init_scale=2.0**8)
        for inputs, target in data:
            optimizer.zero_grad()
            scaler.scale(nn.CrossEntropyLoss()(model(*inputs), target)).backward()
            scaler.step(optimizer)
            scaler.update()

    assert_close(wrapped, plain, atol=1e-6)


# Hooks of torch


@over_all
def test_step_hooks_fire_around_a_step(name: str) -> None:
    model = multimodal()
    optimizer = wrap(model, name)
    bias = dict(model.named_parameters())["fusion.fc_out.bias"]
    before = bias.detach().clone()
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda opt, *_: seen.append(("pre", opt is optimizer, torch.equal(bias, before))))
    optimizer.register_step_post_hook(
        lambda opt, *_: seen.append(("post", opt is optimizer, torch.equal(bias, before)))
    )

    train(model, optimizer, batches(model, 1))

    assert seen == [("pre", True, True), ("post", True, False)]


def test_global_step_hooks_fire_for_the_wrapper_and_for_the_inner_optimizer() -> None:
    model = multimodal()
    optimizer = balanced(model)
    seen: list[str] = []
    handle = register_optimizer_step_pre_hook(lambda opt, args, kwargs: seen.append(type(opt).__name__))

    train(model, optimizer, batches(model, 1))
    handle.remove()

    assert seen == ["BalancedOptimizer", "SGD"]


def test_a_profile_shows_the_step_of_the_wrapper_around_that_of_the_inner_optimizer() -> None:
    model = multimodal()
    optimizer = balanced(model)
    with torch.autograd.profiler.profile(acc_events=True) as profile:
        train(model, optimizer, batches(model, 1))

    names = [event.name for event in profile.function_events or () if event.name.startswith("Optimizer.step#")]
    assert sorted(names) == ["Optimizer.step#BalancedOptimizer.step", "Optimizer.step#SGD.step"]


def test_state_dict_hooks_see_and_change_the_state() -> None:
    model = multimodal()
    optimizer = balanced(model)
    calls: list[object] = []

    def add(opt: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        return {**saved, "added": opt is optimizer}

    optimizer.register_state_dict_pre_hook(calls.append)
    optimizer.register_state_dict_post_hook(add)
    saved = optimizer.state_dict()

    assert calls == [optimizer]
    assert saved["added"] is True
    assert {"state", "param_groups", "modbalance"} < saved.keys()


def test_load_state_dict_hooks_see_and_change_the_state() -> None:
    model = multimodal()
    optimizer = balanced(model)
    saved = optimizer.state_dict()
    calls: list[object] = []

    def slow_down(opt: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, "lr": 0.5} for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(slow_down)
    optimizer.register_load_state_dict_post_hook(calls.append)
    optimizer.load_state_dict(saved)

    assert calls == [optimizer]
    assert inner_of(optimizer).param_groups[0]["lr"] == 0.5
    assert saved["param_groups"][0]["lr"] == 0.1


# torch.distributed.checkpoint


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_distributed_checkpoint_helpers_round_trip(name: str) -> None:
    model, resumed = multimodal(), multimodal()
    optimizer, other = wrap(model, name), wrap(resumed, name)
    train(model, optimizer, batches(model, 3))

    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))  # torch's optimizers alias what they load
    resumed.load_state_dict(model.state_dict())
    with pytest.warns(ModbalanceWarning, match=r"holds nothing of modbalance"):
        set_optimizer_state_dict(resumed, other, saved)

    assert set(saved["state"]) == {key for key, _ in model.named_parameters()}
    assert_same_state(inner_of(other).state_dict(), inner_of(optimizer).state_dict())
    other.load_state_dict({"modbalance": optimizer.state_dict()["modbalance"]})
    assert optimizer.state_dict()["modbalance"] == other.state_dict()["modbalance"]
    rest = batches(model, 2, seed=2)
    assert_same(train(resumed, other, rest), train(model, optimizer, rest))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_distributed_checkpoint_helpers_may_come_before_the_first_step(name: str) -> None:
    model = multimodal()
    before = weights(model)

    saved = get_optimizer_state_dict(model, wrap(model, name))

    assert_same(before, model)
    assert saved["param_groups"]
