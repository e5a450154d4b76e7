"""MSLR and MSES on two ranks of DistributedDataParallel against one process on the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modbalance import BalancedOptimizer
from support.models import Multimodal
from support.ranks import on_ranks
from support.training import batches, multimodal, sgd

pytestmark = pytest.mark.slow

EPOCHS = 6
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mslr": [{"memory": 1, "mode": "grad"}, {"memory": 2, "mode": "lr"}],
    "mses": [
        {"patience": 0, "rewind": "all"},
        {"patience": 0, "rewind": "modality", "freeze": "hard"},
    ],
}
CASES = [(method, options, feed) for method, each in OPTIONS.items() for options in each for feed in ("told", "loader")]


def run(
    model: nn.Module, bare: Multimodal, method: str, options: dict[str, Any], feed: str, part: slice, told: float
) -> dict[str, Any]:
    """Train; ``told`` is what this rank's numbers are off by, so that only their mean over ranks is right."""
    optimizer = BalancedOptimizer(
        sgd(bare, 0.5), method, model=model, modalities=bare.paths, fusion="fusion", **options
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    factors: list[float] = []
    for epoch, (inputs, target) in enumerate(batches(bare, EPOCHS)):
        optimizer.zero_grad()
        criterion(model(*(x[part] for x in inputs)), target[part]).backward()
        optimizer.step()
        factors += [value for key, value in optimizer.metrics().items() if "/coefficient/" in key]
        if feed == "loader":
            loader = [(*(x[part] for x in xs), y[part]) for xs, y in batches(bare, 2, seed=50)]
            optimizer.end_epoch(val=loader, forward=lambda module, item: (module(*item[:-1]), item[-1]))
        else:
            numbers = {name: 2.0 + told + (epoch * (u + 1)) % 3 for u, name in enumerate(bare.encoders)}
            optimizer.end_epoch(metrics={"accuracy": numbers, "loss": numbers})
    return {"weights": dict(bare.state_dict()), "factors": factors, "stop": optimizer.should_stop}


def train_rank(rank: int, method: str, options: dict[str, Any], feed: str) -> dict[str, Any]:
    bare = multimodal("abc", "mlp")
    part, told = slice(3 * rank, 3 * rank + 3), 0.5 - rank
    return run(DistributedDataParallel(bare), bare, method, options, feed, part, told)


@pytest.mark.parametrize(("method", "options", "feed"), CASES)
def test_two_ranks_equal_one_process_on_the_joined_batch(method: str, options: dict[str, Any], feed: str) -> None:
    first, second = on_ranks(train_rank, method, options, feed)
    bare = multimodal("abc", "mlp")
    alone = run(bare, bare, method, options, feed, slice(None), 0.0)
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert (first["weights"][name] - value).abs().max() <= 1e-6, name
    assert first["factors"] == second["factors"] == pytest.approx(alone["factors"], rel=1e-5)
    assert first["stop"] is second["stop"] is alone["stop"]
    assert set(alone["factors"]) != {1.0}
