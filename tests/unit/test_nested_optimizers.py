"""Optimizers that keep the state of parameters in another one inside of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD, Adafactor, Adagrad, AdamW, Optimizer

from modbalance import BalancedOptimizer, ConfigError
from modbalance._nested import nested
from support.training import assert_same, batches, multimodal, train


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    dist.destroy_process_group()


class Around(Optimizer):
    """Steps an optimizer that it holds, as Lookahead and SAM do."""

    def __init__(self, inside: Optimizer) -> None:
        super().__init__(inside.param_groups, {})
        self.inside = inside

    def step(self, closure: Any = None) -> Any:
        self.inside.step()


def zero_redundancy(model: nn.Module, kind: type[Optimizer] = SGD, **settings: Any) -> Optimizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.script, of torch itself
        from torch.distributed.optim import ZeroRedundancyOptimizer
    return ZeroRedundancyOptimizer(model.parameters(), kind, lr=0.1, **settings)


def around(model: nn.Module, kind: type[Optimizer] = SGD, **settings: Any) -> Optimizer:
    return Around(kind(model.parameters(), lr=0.1, **settings))  # type: ignore[call-arg]


def balanced_around(inner: Optimizer, model: Any, method: str, **options: Any) -> BalancedOptimizer:
    return BalancedOptimizer(inner, method, model=model, modalities=model.paths, fusion="fusion", **options)


@pytest.mark.parametrize("wrap", [zero_redundancy, around])
def test_momentum_of_encoders_is_reset_where_it_is(wrap: Any) -> None:
    model = multimodal()
    inner = wrap(model, momentum=0.9)
    optimizer = balanced_around(inner, model, "relearning", period=1, offset=-1, reset_momentum=True)
    data = batches(model, 3)
    train(model, optimizer, data)
    *_, inside = nested(inner)
    assert set(inside.state) == {*model.parameters()}
    loader = [(*inputs, target) for inputs, target in data]
    optimizer.end_epoch(train=loader, val=loader)

    assert set(inside.state) == {*model.fusion.parameters()}


@pytest.mark.parametrize("wrap", [zero_redundancy, around])
def test_adagrad_inside_is_refused_too(wrap: Any) -> None:
    model = multimodal()
    with pytest.raises(ConfigError, match="`reset_momentum` should be False with Adagrad"):
        balanced_around(wrap(model, Adagrad), model, "relearning", reset_momentum=True)


@pytest.mark.parametrize("rewind", ["all", "modality"])
def test_a_rewind_of_state_in_parts_is_refused_when_the_optimizer_is_built(rewind: str) -> None:
    model = multimodal()
    with pytest.raises(ConfigError, match=r"each rank holds a part of it.*pass `rewind='none'`"):
        balanced_around(zero_redundancy(model), model, "mses", rewind=rewind)


def test_without_a_rewind_mses_stops_modalities_in_a_sharded_optimizer() -> None:
    model = multimodal()
    optimizer = balanced_around(zero_redundancy(model), model, "mses", rewind="none", patience=0)
    for loss in (1.0, 2.0, 3.0):
        train(model, optimizer, batches(model, 1))
        optimizer.end_epoch(metrics={"loss": {"a": loss, "b": 1.0 / loss}})

    assert optimizer.metrics()["mses/ratio/a"] == 0
    assert optimizer.metrics()["mses/ratio/b"] == 1


def test_optimizers_are_found_once_however_they_hold_each_other() -> None:
    inside = SGD([nn.Parameter(torch.ones(2))], 0.1)
    outside = Around(inside)
    outside.others = [inside, Around(inside), outside]  # type: ignore[attr-defined]

    assert [type(each) for each in nested(outside)] == [Around, SGD, Around]


@pytest.mark.parametrize("kind", [AdamW, Adafactor])
@pytest.mark.parametrize("wrap", [zero_redundancy, around])
def test_the_update_of_an_optimizer_inside_is_scaled_without_its_decay(wrap: Any, kind: type[Optimizer]) -> None:
    nested_in, plain = multimodal(), multimodal()
    inners = wrap(nested_in, kind, weight_decay=0.3), kind(plain.parameters(), lr=0.1, weight_decay=0.3)  # type: ignore[call-arg]
    for model, inner in zip((nested_in, plain), inners, strict=True):
        optimizer = balanced_around(inner, model, "ogm", apply="update", param_filter="all")
        train(model, optimizer, batches(model, 3))
    assert_same(nested_in, plain)
