"""What remains of an optimizer's update under scaled gradients is measured, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, NAdam, Optimizer, RAdam, Rprop
from torch.optim.optimizer import register_optimizer_step_pre_hook

from modbalance import _invariance
from modbalance._invariance import MOST
from modbalance._joint import JointOptimizer
from modbalance.gradients import optimized


class SignDescent(Optimizer):
    """An optimizer of a user, with a name that says nothing."""

    def __init__(self, params: Iterable[Any], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "unknown_to_the_constructor": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


class InverseDescent(SignDescent):
    """An update that grows as gradients shrink, as that of KATE does."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad / parameter.grad.norm() ** 2, alpha=group["lr"])


class Adamant(SGD):
    """Plain descent under a name that holds another one's."""


class NeedsAModel(SGD):
    def __init__(self, params: Iterable[Any], model: nn.Module, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)


def kept_update(optimizer: Optimizer) -> float:
    return _invariance.kept_update(optimizer, list(optimized(optimizer)))[0]


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(3, 2))]


@pytest.mark.parametrize("kind", [AdamW, NAdam, RAdam, Rprop, Adafactor, SignDescent])
def test_optimizers_that_take_the_size_out_of_gradients(kind: Callable[..., Optimizer]) -> None:
    assert 0.7 < kept_update(kind(parameters())) < 1.5


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        SGD(parameters(), lr=torch.tensor(0.1), foreach=True),
        Adamant(parameters()),
        NeedsAModel(parameters(), nn.Linear(1, 1)),
    ],
    ids=["momentum", "tensor rate", "named alike", "cannot be built again"],
)
def test_optimizers_whose_update_follows_the_size(optimizer: Optimizer) -> None:
    assert kept_update(optimizer) < 0.02


def test_an_update_that_grows_as_gradients_shrink() -> None:
    assert kept_update(InverseDescent(parameters())) == pytest.approx(100, rel=1e-3)


def test_a_rate_of_zero_hides_nothing() -> None:
    assert kept_update(AdamW(parameters(), lr=0.0)) == pytest.approx(1, rel=1e-3)


def test_one_group_of_many_is_enough() -> None:
    linear: dict[str, Any] = {"params": parameters(), "eps": 1e6}  # so large that the update follows the gradient
    assert kept_update(AdamW([linear])) < MOST
    assert kept_update(AdamW([linear, {"params": parameters()}])) == pytest.approx(1, rel=1e-3)


def test_groups_without_parameters_that_matter_are_left_out() -> None:
    encoder, head = parameters(), parameters()
    groups: list[dict[str, Any]] = [{"params": encoder, "eps": 1e6}, {"params": head, "name": "head"}]
    optimizer = AdamW(groups)
    assert _invariance.kept_update(optimizer, encoder)[0] < MOST
    joint = JointOptimizer([SGD(encoder, lr=0.1), AdamW(head)])
    share, name = _invariance.kept_update(joint, encoder)
    assert (share < MOST, name) == (True, "SGD")
    share, name = _invariance.kept_update(joint, [*encoder, *head])
    assert (share > MOST, name) == (True, "AdamW")


def test_random_numbers_of_devices_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    kept_update(AdamW(parameters()))
    assert not seeds


def test_nothing_is_left_behind() -> None:
    called: list[Optimizer] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: called.append(optimizer))
    optimizer = AdamW(parameters())
    before, state = optimizer.param_groups[0]["params"][0].detach().clone(), torch.get_rng_state()
    assert kept_update(optimizer) == pytest.approx(1, rel=1e-3)
    handle.remove()
    after: Tensor = optimizer.param_groups[0]["params"][0]
    assert torch.equal(after, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not optimizer.state
    assert not called
