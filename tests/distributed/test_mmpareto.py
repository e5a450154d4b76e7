"""MMPareto on two ranks of DistributedDataParallel against one process on the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from modbalance import BalancedOptimizer
from support.models import Multimodal
from support.ranks import on_ranks
from support.training import batches, multimodal, sgd

pytestmark = pytest.mark.slow

KINDS = ("own", "built", "slice")


def start(kind: str) -> Multimodal:
    model = multimodal("ab")
    if kind == "own":
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            model.own = nn.ModuleDict({name: nn.Linear(4, 3) for name in "ab"})
    return model


def run(model: nn.Module, bare: Multimodal, kind: str, part: slice) -> dict[str, Tensor]:
    choices: dict[str, dict[str, Any]] = {
        "own": {"unimodal": {"a": "own.a", "b": "own.b"}},
        "built": {"head_optimizer": descent},
        "slice": {"heads": "slice"},
    }
    optimizer = BalancedOptimizer(
        sgd(bare), "mmpareto", model=model, modalities=bare.paths, fusion="fusion", **choices[kind]
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for inputs, target in batches(bare, 6):
        optimizer.zero_grad()
        criterion(model(*(x[part] for x in inputs)), target[part]).backward()
        optimizer.step()
    return dict(bare.state_dict())


def descent(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.1)


def train_rank(rank: int) -> list[dict[str, Tensor]]:
    models = [start(kind) for kind in KINDS]
    part = slice(3 * rank, 3 * rank + 3)
    return [run(DistributedDataParallel(m), m, kind, part) for kind, m in zip(KINDS, models, strict=True)]


def test_two_ranks_equal_one_process_on_the_joined_batch() -> None:
    first, second = on_ranks(train_rank)
    for kind, one, two in zip(KINDS, first, second, strict=True):
        bare = start(kind)
        alone = run(bare, bare, kind, slice(None))
        for name, value in alone.items():
            assert torch.equal(one[name], two[name]), (kind, name)
            assert (one[name] - value).abs().max() <= 1e-6, (kind, name)
