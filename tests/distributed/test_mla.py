"""MLA on two ranks of DistributedDataParallel against one process on the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from modbalance import BalancedOptimizer, ConfigError
from support.models import Multimodal
from support.ranks import on_ranks
from support.training import batches, multimodal, sgd

pytestmark = pytest.mark.slow

THERE = {"b": torch.tensor([True, True, False, True, False, False])}
"""Samples of the first rank lack one modality, those of the second have it in one."""
KINDS: dict[str, dict[str, Any]] = {
    "off": {},
    "coast": {"idle": "coast"},
    "projected": {"projection": "rls", "steps_per_epoch": 6},
    "AdamW": {"projection": "elementwise"},
    "missing": {"projection": "rls"},
    "missing on the second rank": {},
}


def start(dtype: torch.dtype = torch.float64) -> Multimodal:
    model = multimodal("ab", "shared", dtype=dtype)
    for encoder in model.encoders.values():
        assert isinstance(encoder, nn.Sequential)
        encoder.append(nn.Softplus())
    return model


def run(model: nn.Module, bare: Multimodal, kind: str, part: slice) -> dict[str, Any]:
    inner = AdamW(bare.parameters(), lr=1e-2) if kind == "AdamW" else sgd(bare)
    optimizer = BalancedOptimizer(inner, "mla", model=model, modalities=bare.paths, fusion=bare.fusion, **KINDS[kind])
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for inputs, target in batches(bare, 6, dtype=torch.float64):
        there = {"missing": THERE["b"], "missing on the second rank": torch.arange(6) < 4}.get(kind)
        # The first rank has all of these, and does not know that the other one lacks some.
        knows = there is not None and not there[part].all()
        optimizer.zero_grad()
        present = {"b": there[part]} if knows and there is not None else None
        criterion(model(*(x[part] for x in inputs)), target[part], present=present).backward()
        optimizer.step()
    state = optimizer.state_dict()
    return {"weights": dict(bare.state_dict()), "inner": state["state"], "own": state["modbalance"]["methods"]}


def train_rank(rank: int) -> dict[str, dict[str, Any]]:
    part = slice(3 * rank, 3 * rank + 3)
    return {kind: run(DistributedDataParallel(m := start()), m, kind, part) for kind in KINDS}


def test_two_ranks_equal_one_process_on_the_joined_batch() -> None:
    first, second = on_ranks(train_rank)
    for kind in KINDS:
        one, two, bare = first[kind], second[kind], start()
        alone = run(bare, bare, kind, slice(None))
        for name, value in alone["weights"].items():
            assert torch.equal(one["weights"][name], two["weights"][name]), (kind, name)
            assert (one["weights"][name] - value).abs().max() <= 1e-10, (kind, name)
        head = len(one["inner"]) - 1
        for name, value in one["inner"][head].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(two["inner"][head][name])), (kind, name)
        P = [each["own"]["mla"]["P"] for each in (one, two)]
        assert P[0] is None or torch.equal(*P), kind


def joined(rank: int) -> str:
    model = start()
    parallel = DistributedDataParallel(model)
    optimizer: Any = BalancedOptimizer(sgd(model), "mla", model=parallel, modalities=model.paths, fusion=model.fusion)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    try:
        with Join([parallel, optimizer]):
            ((inputs, target),) = batches(model, 1, dtype=torch.float64)
            criterion(parallel(*inputs), target)
    except ConfigError as error:
        return str(error)
    return ""


def test_uneven_batches_are_refused() -> None:
    for message in on_ranks(joined):
        assert "Method `mla` should not reduce values over ranks outside of `opt.step()`" in message
