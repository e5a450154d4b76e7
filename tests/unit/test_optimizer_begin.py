"""`opt.begin`: a look at data before the first step."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer, EpochData, Method, Run, hookimpl
from modbalance._plugins import load_method
from support.models import Multimodal
from support.training import assert_same, batches, multimodal, sgd, train, weights


@attrs.define(eq=False, kw_only=True)
class Counter(Method):
    """Counts the samples of each class before the first step."""

    name: ClassVar[str] = "counter"
    counted: list[list[int]] = attrs.field(factory=list)

    @hookimpl
    def modbalance_begin(self, run: Run, data: EpochData) -> None:
        assert data.train is not None
        total = torch.zeros(3, dtype=torch.long)
        for batch in run.evaluate(data.train, data.forward):
            total += torch.bincount(batch.target, minlength=3)
        self.counted.append(total.tolist())


def loader() -> list[tuple[Tensor, ...]]:
    return [(*inputs, target) for inputs, target in batches(multimodal(), 3)]


def wrapped(model: Multimodal, method: Any) -> BalancedOptimizer:
    return BalancedOptimizer(sgd(model), method, model=model, modalities=model.paths, fusion="fusion")


def training() -> tuple[nn.Module, BalancedOptimizer, Counter]:
    model, method = multimodal(), Counter()
    return model, wrapped(model, method), method


def test_methods_see_the_data_before_the_first_step() -> None:
    model, optimizer, method = training()
    before = weights(model)
    optimizer.begin(train=loader())
    expected = torch.cat([target for *_, target in loader()]).bincount(minlength=3).tolist()
    assert method.counted == [expected]
    assert optimizer.epoch == 0
    assert_same(weights(model), before)
    assert model.training


def test_the_loop_of_the_model_is_the_users() -> None:
    _, optimizer, method = training()

    def forward(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return model(*batch["inputs"]), batch["target"]

    optimizer.begin(train=[{"inputs": inputs, "target": y} for *inputs, y in loader()], forward=forward)
    assert sum(method.counted[0]) == 18


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_training_that_has_begun_begins_no_more(has_begun: bool) -> None:
    model, method = multimodal(), Counter()
    optimizer = wrapped(model, [method, load_method("ogm").configure(param_filter="all")])
    if has_begun:
        train(model, optimizer, batches(model, 1))
    optimizer.begin(train=loader())
    assert bool(method.counted) is not has_begun


def test_a_loaded_training_keeps_its_state() -> None:
    _, optimizer, method = training()
    optimizer.end_epoch()
    saved = optimizer.state_dict()
    _, optimizer, method = training()
    optimizer.load_state_dict(saved)
    optimizer.begin(train=loader())
    assert method.counted == []


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_training_loaded_before_the_first_step_of_a_method_begins_once(has_begun: bool) -> None:
    """A method that acts from a later epoch on counts no steps before; Accelerate's `prepare` loads a fresh state."""
    _, optimizer, _ = training()
    if has_begun:
        optimizer.begin(train=loader())
    saved = optimizer.state_dict()
    _, optimizer, method = training()
    optimizer.load_state_dict(saved)
    optimizer.begin(train=loader())
    assert bool(method.counted) is not has_begun


def test_before_the_first_step_a_training_may_begin_again_with_other_data() -> None:
    _, optimizer, method = training()
    optimizer.begin(train=loader()[:1])
    optimizer.begin(train=loader())
    assert [sum(each) for each in method.counted] == [6, 18]


@pytest.mark.parametrize("method", ["none", "dgl"])
def test_other_methods_draw_nothing_from_the_loader(method: str) -> None:
    def drawn() -> Any:
        raise AssertionError("a batch was drawn")
        yield

    model = multimodal()
    wrapped(model, method).begin(train=drawn())


def test_a_method_without_hooks_in_a_step_costs_nothing_there() -> None:
    model, optimizer, _ = training()
    optimizer.begin(train=loader())
    train(model, optimizer, batches(model, 1))
    assert optimizer._lifecycle.training.watch.forward is None
    assert not optimizer._lifecycle.training.watch.enabled
