"""BalancedOptimizer is a torch optimizer: groups, state, other optimizers inside and beside it."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Optimizer

from modbalance import BalancedOptimizer, ModbalanceWarning
from support.optimizers import INNER, SCALE_INVARIANT, assert_same_state, inner_of, model_free, wrap
from support.training import assert_same, balanced, batches, multimodal, train, weights

over_all = pytest.mark.parametrize("name", INNER)


@over_all
def test_is_an_optimizer_that_shares_groups_state_and_defaults(name: str) -> None:
    model = multimodal()
    optimizer = wrap(model, name)
    inner = inner_of(optimizer)

    train(model, optimizer, batches(model, 2))

    assert isinstance(optimizer, Optimizer)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    assert len(inner.state) == len(list(model.parameters()))


@over_all
def test_without_a_method_is_bitwise_the_inner_optimizer(name: str) -> None:
    plain, wrapped = multimodal(), multimodal()
    data = batches(plain, 4)

    train(plain, INNER[name](plain.parameters()), data)
    train(wrapped, wrap(wrapped, name, "none"), data)

    assert_same(wrapped, plain)


@over_all
def test_a_method_changes_the_gradients_that_the_inner_optimizer_sees(name: str) -> None:
    plain, wrapped = multimodal(), multimodal()
    data = batches(plain, 4)

    train(plain, INNER[name](plain.parameters()), data)
    train(wrapped, wrap(wrapped, name), data)

    before, after = weights(plain), weights(wrapped)
    assert not all(torch.equal(before[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())


@over_all
def test_puts_nothing_of_its_own_into_the_inner_optimizer(name: str) -> None:
    plain, wrapped = multimodal(), multimodal()
    bare = INNER[name](plain.parameters())
    optimizer = wrap(wrapped, name, "ogm_ge")

    train(plain, bare, batches(plain, 2))
    train(wrapped, optimizer, batches(wrapped, 2))

    ours = inner_of(optimizer)
    assert [set(group) for group in ours.param_groups] == [set(group) for group in bare.param_groups]
    assert [set(s) for s in ours.state.values()] == [set(s) for s in bare.state.values()]
    assert ours.defaults == bare.defaults
    assert vars(ours).keys() == vars(bare).keys()


@over_all
def test_wrapping_keeps_the_state_that_is_there(name: str) -> None:
    plain, wrapped = multimodal(), multimodal()
    first, second = batches(plain, 2), batches(plain, 2, seed=2)
    bare, inner = INNER[name](plain.parameters()), INNER[name](wrapped.parameters())
    train(plain, bare, first)
    train(wrapped, inner, first)
    kept = copy.deepcopy(inner.state_dict())

    optimizer = balanced(wrapped, "none", inner)

    assert_same_state(inner.state_dict(), kept)
    assert len(optimizer.state) == len(list(wrapped.parameters()))
    train(plain, bare, second)
    train(wrapped, optimizer, second)
    assert_same(wrapped, plain)


@pytest.mark.parametrize("name", SCALE_INVARIANT)
def test_a_scale_that_the_optimizer_takes_out_again_is_named(name: str) -> None:
    model = multimodal()

    with pytest.warns(
        ModbalanceWarning, match=rf"`ogm` scales gradients, and the update of {name} hardly follows.*times as far"
    ) as given:
        balanced(model, "ogm", INNER[name](model.parameters()))

    assert len(given) == 1


# Groups


# torch's Adagrad creates its state when it is built, and cannot step a group that is added later.
@pytest.mark.parametrize("name", [name for name in INNER if name != "Adagrad"])
def test_a_group_can_be_added(name: str) -> None:
    model = multimodal()
    with pytest.warns(ModbalanceWarning) if name in SCALE_INVARIANT else nullcontext():
        optimizer = balanced(model, "ogm", INNER[name](model.encoders.parameters()))
    before = weights(model.fusion)

    optimizer.add_param_group({"params": list(model.fusion.parameters()), "lr": 0.5})
    train(model, optimizer, batches(model, 1))

    assert len(inner_of(optimizer).param_groups) == 2
    assert inner_of(optimizer).param_groups[1]["lr"] == 0.5
    assert not torch.equal(weights(model.fusion)["fc_out.weight"], before["fc_out.weight"])


def test_an_encoder_that_is_added_later_is_modulated() -> None:
    model, added = multimodal(), multimodal()
    expected = balanced(model, inner=SGD(model.parameters(), lr=0.1))
    optimizer = balanced(added, inner=SGD(added.fusion.parameters(), lr=0.1))

    optimizer.add_param_group({"params": list(added.encoders.parameters())})

    assert_same(train(added, optimizer, batches(added, 2)), train(model, expected, batches(model, 2)))


def test_an_encoder_that_is_added_later_as_a_group_of_a_modality_is_modulated() -> None:
    model, added = multimodal(), multimodal()
    expected, optimizer = model_free(model), model_free(added, slice(1))

    for name in ("a", "b"):
        optimizer.add_param_group({"params": list(added.encoders[name][1:].parameters()), "modality": name})  # type: ignore[index]

    for each, its_optimizer in ((model, expected), (added, optimizer)):
        criterion = its_optimizer.criterion(nn.CrossEntropyLoss())
        inputs, target = batches(each, 1)[0]
        given = {name: x[:, :3] for name, x in zip("ab", inputs, strict=True)}
        criterion(each(*inputs), target, unimodal_logits=given).backward()
        its_optimizer.step()
    assert_same(added, model)


def test_groups_and_state_that_are_rebound_reach_the_inner_optimizer() -> None:
    model = multimodal()
    optimizer = balanced(model)
    train(model, optimizer, batches(model, 1))
    groups = [{**optimizer.param_groups[0], "lr": 0.0, "weight_decay": 0.0}]
    emptied: Any = type(optimizer.state)(dict)

    optimizer.param_groups = groups
    optimizer.state = emptied
    before = weights(model)
    train(model, optimizer, batches(model, 1))

    assert inner_of(optimizer).param_groups is groups
    assert inner_of(optimizer).state is emptied
    assert len(emptied) == len(list(model.parameters()))
    assert_same(before, model)


# Other optimizers, others beside it


def test_two_optimizers_in_one_process_are_independent() -> None:
    alone, one, two = multimodal(), multimodal(), multimodal(seed=5)
    data, other = batches(alone, 3), batches(two, 3, seed=7)
    train(alone, balanced(alone, "ogm_ge"), data)
    first, second = balanced(one, "ogm_ge"), balanced(two, "ogm_ge", seed=3)

    for batch, distraction in zip(data, other, strict=True):
        train(one, first, [batch])
        train(two, second, [distraction, distraction])
    second.epoch = 4

    assert_same(one, alone)
    assert first.epoch == 0
    assert first.metrics() != second.metrics()


def test_schedule_free_switches_between_training_and_evaluation_weights() -> None:
    model = multimodal()
    optimizer: Any = wrap(model, "AdamWScheduleFree")
    train(model, optimizer, batches(model, 4))
    training = weights(model)

    optimizer.eval()
    evaluation = weights(model)
    optimizer.train()

    assert not torch.equal(evaluation["fusion.fc_out.weight"], training["fusion.fc_out.weight"])
    for key, value in weights(model).items():
        torch.testing.assert_close(value, training[key])


def test_an_optimizer_that_must_have_a_closure_is_modulated_at_each_evaluation() -> None:
    plain, none, ogm = multimodal(), multimodal(), multimodal()
    losses: dict[str, list[float]] = {"plain": [], "none": [], "ogm": []}
    inputs, target = batches(plain, 1)[0]
    for key, model in (("plain", plain), ("none", none), ("ogm", ogm)):
        inner = LBFGS(model.parameters(), lr=0.2, max_iter=3)
        optimizer = inner if key == "plain" else balanced(model, key, inner)
        criterion: Any = nn.CrossEntropyLoss()
        if isinstance(optimizer, BalancedOptimizer):
            criterion = optimizer.criterion(criterion)
        losses[key] = [_lbfgs_step(optimizer, criterion, model, inputs, target) for _ in range(3)]

    assert_same(none, plain)
    assert losses["none"] == losses["plain"]
    assert losses["ogm"][-1] < losses["ogm"][0]
    assert losses["ogm"][-1] != losses["plain"][-1]


def test_step_returns_what_the_closure_returns() -> None:
    model = multimodal()
    optimizer = balanced(model)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    inputs, target = batches(model, 1)[0]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(*inputs), target)
        loss.backward()
        return loss

    returned = optimizer.step(closure)

    assert torch.equal(returned, nn.CrossEntropyLoss()(multimodal()(*inputs), target))
    assert optimizer.metrics()["ogm/coefficient/a"] <= 1


def test_repr_names_methods_and_inner_optimizer() -> None:
    model = multimodal()

    assert repr(balanced(model)).startswith("BalancedOptimizer(ogm, SGD (")
    assert repr(balanced(model, "none")).startswith("BalancedOptimizer(none, SGD (")


def test_reaches_what_only_the_inner_optimizer_has() -> None:
    class Counting(SGD):
        answers = 42

    model = multimodal()
    optimizer = balanced(model, inner=Counting(model.parameters(), lr=0.1))

    assert optimizer.answers == 42
    with pytest.raises(AttributeError, match=r"answer_of_nothing"):
        _ = optimizer.answer_of_nothing


def _lbfgs_step(optimizer: Any, criterion: Any, model: nn.Module, inputs: Any, target: Any) -> float:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = criterion(model(*inputs), target)
        loss.backward()
        return loss

    return float(optimizer.step(closure).detach())
