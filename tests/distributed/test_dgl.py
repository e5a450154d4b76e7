"""DGL on two ranks of DistributedDataParallel against one process on the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from modbalance import BalancedOptimizer
from support.models import Multimodal
from support.ranks import on_ranks
from support.training import batches, multimodal, sgd

pytestmark = pytest.mark.slow


def model_for(head: str, has_unused: bool) -> Multimodal:
    model = multimodal("abc", head)
    if has_unused:
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            model.fusion.register_module("unused", nn.Linear(2, 2))
    return model


def steps(model: nn.Module, bare: Multimodal, part: slice, dry_run: bool) -> dict[str, Any]:
    optimizer = BalancedOptimizer(
        sgd(bare), "dgl", model=model, modalities=bare.paths, fusion="fusion", dry_run=dry_run
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for inputs, target in batches(bare, 4):
        optimizer.zero_grad()
        criterion(model(*(x[part] for x in inputs)), target[part]).backward()
        optimizer.step()
    without = [name for name, p in bare.named_parameters() if p.grad is None]
    return {"weights": dict(bare.state_dict()), "without gradient": without}


def train_rank(rank: int, head: str, has_unused: bool, dry_run: bool) -> dict[str, Any]:
    bare = model_for(head, has_unused)
    wrapped = DistributedDataParallel(bare, find_unused_parameters=has_unused)
    return steps(wrapped, bare, slice(3 * rank, 3 * rank + 3), dry_run)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("has_unused", [False, True])
@pytest.mark.parametrize("head", ["concat", "film"])
def test_two_ranks_equal_one_process_on_the_joined_batch(head: str, has_unused: bool, dry_run: bool) -> None:
    first, second = on_ranks(train_rank, head, has_unused, dry_run)
    bare = model_for(head, has_unused)
    alone = steps(bare, bare, slice(None), dry_run)
    expected: dict[str, Tensor] = alone["weights"]
    for name, value in expected.items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert (first["weights"][name] - value).abs().max() <= 1e-6, name
    unused = ["fusion.unused.weight", "fusion.unused.bias"] if has_unused else []
    assert first["without gradient"] == second["without gradient"] == alone["without gradient"] == unused
