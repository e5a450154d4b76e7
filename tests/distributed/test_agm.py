"""AGM on two ranks of DistributedDataParallel against one process on the joined batch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from modbalance import BalancedOptimizer, ModbalanceWarning
from support.models import Multimodal
from support.ranks import on_ranks
from support.training import Batch, balanced, batches, multimodal

pytestmark = pytest.mark.slow

Shares = list[tuple[int, int]]

HALVES: Shares = [(0, 3), (3, 6)]
ALL = (0, 6)
CASES: dict[str, dict[str, Any]] = {
    "clipped": {"clip_trigger": 1e-3, "clip_norm": 0.1},
    "whole passes": {"coalitions": "full", "max_gap": None, "include_current": True},
    "chosen form": {"coalitions": "auto"},
    "frozen": {"end_epoch": 1, "after_window": "freeze"},
    "late": {"start_epoch": 1},
    "recomputed": {"recompute": True},
    "whole passes, recomputed": {"recompute": True, "coalitions": "full"},
    "constant passes": {"masked_pass_grad": False},
}


def steps(model: nn.Module, optimizer: BalancedOptimizer, data: list[Batch], share: tuple[int, int]) -> dict[str, Any]:
    """Take two steps in each of two epochs."""
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for index, (inputs, target) in enumerate(data):
        optimizer.epoch = index // 2
        optimizer.zero_grad()
        loss = criterion(model(*(x[slice(*share)] for x in inputs)), target[slice(*share)])
        (loss if len(target[slice(*share)]) else loss.nan_to_num(0.0)).backward()
        optimizer.step()
    own = optimizer.state_dict()["modbalance"]["methods"]["agm"]
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    return {"weights": dict(bare.state_dict()), "state": own, "metrics": optimizer.metrics()}


def train_rank(rank: int, shares: Shares, options: dict[str, Any], names: str = "ab", count: int = 4) -> dict[str, Any]:
    model = multimodal(names)
    wrapped = DistributedDataParallel(model)
    optimizer = balanced(model, "agm", **{"coalitions": "factored", "alpha": 2.5, **options})
    return steps(wrapped, optimizer, batches(model, count), shares[rank])


def train_alone(options: dict[str, Any], names: str = "ab", count: int = 4) -> dict[str, Any]:
    model = multimodal(names)
    optimizer = balanced(model, "agm", **{"coalitions": "factored", "alpha": 2.5, **options})
    return steps(model, optimizer, batches(model, count), ALL)


def assert_ranks_are_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    for part in ("weights", "state"):
        for name, value in first[part].items():
            same = torch.equal(value, second[part][name]) if isinstance(value, Tensor) else value == second[part][name]
            assert same, name
    assert first["metrics"] == pytest.approx(second["metrics"], rel=0, abs=0, nan_ok=True)
    assert all(value.isfinite().all() for value in first["weights"].values())


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_joined_batch(case: str, names: str) -> None:
    first, second = on_ranks(train_rank, HALVES, CASES[case], names)
    alone = train_alone(CASES[case], names)
    assert_ranks_are_equal(first, second)
    for name, value in alone["weights"].items():
        assert (first["weights"][name] - value).abs().max() <= 1e-6, name
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
    assert first["state"]["form"] == alone["state"]["form"]
    assert torch.equal(first["state"]["score_steps"], alone["state"]["score_steps"])


def test_an_empty_rank() -> None:
    first, second = on_ranks(train_rank, [(0, 6), (6, 6)], {"coalitions": "auto"}, "ab", 1)
    assert_ranks_are_equal(first, second)
    assert first["metrics"] == pytest.approx(train_alone({"coalitions": "auto"}, "ab", 1)["metrics"], rel=1e-5)
    assert first["state"]["form"] == "factored"


def test_no_samples_on_any_rank() -> None:
    first, second = on_ranks(train_rank, [(0, 0), (0, 0)], {"coalitions": "auto"}, "ab", 1)
    assert_ranks_are_equal(first, second)
    assert first["state"]["form"] == "auto"
    assert first["metrics"]["agm/nonfinite/a"] == 1


class Uneven(Multimodal):
    """On one rank the features of b get something of the input of a."""

    gate = 0.0

    def forward(self, *inputs: Tensor) -> Tensor:
        a, b = (encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True))
        return self.fusion(a, b + self.gate * inputs[0][:, :4]) if self.gate else self.fusion(a, b)


def disagreeing_rank(rank: int) -> dict[str, Any]:
    model = Uneven()
    model.load_state_dict(multimodal().state_dict())
    model.gate = 0.5 * rank
    wrapped = DistributedDataParallel(model)
    optimizer = balanced(model, "agm")
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always", ModbalanceWarning)
        result = steps(wrapped, optimizer, batches(model, 4), HALVES[rank])
    return result | {"words": [str(each.message) for each in given if each.category is ModbalanceWarning]}


def test_ranks_agree_on_the_form() -> None:
    first, second = on_ranks(disagreeing_rank)
    assert first["state"]["form"] == second["state"]["form"] == "full"
    assert_ranks_are_equal(first, second)
    assert ["another rank found a reason" in words for words in first["words"]] == [True]
    assert ["depend on the input of another modality" in words for words in second["words"]] == [True]
