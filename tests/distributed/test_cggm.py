"""Two ranks of CGGM against one process on the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from modbalance import BalancedOptimizer
from modbalance.method import Preset
from modbalance_cggm import CGGM
from support.ranks import on_ranks
from support.training import Batch, batches, multimodal, sgd

pytestmark = pytest.mark.slow

Share = tuple[int, int]
HALVES: list[Share] = [(0, 3), (3, 6)]
WHOLE: Share = (0, 6)


def slow(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.05, momentum=0.5)


class NormProbe(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def trained(wraps: bool, share: Share, options: dict[str, Any], micro: int = 1) -> dict[str, Any]:
    """Return weights, weights of the probes and metrics after four steps on a share of each batch."""
    model = multimodal("abc", "film")
    seen: nn.Module = DistributedDataParallel(model) if wraps else model
    chosen: dict[str, Any] = {"clip_grad_norm": 0.8, "coeff_clip": (-2.0, 2.0), "probe_optimizer": slow} | options
    if chosen.get("probes") == "norm":
        torch.manual_seed(share[0])  # ranks that build different probes end up with those of rank 0
        chosen["probes"] = {name: NormProbe() for name in "abc"}
    optimizer = BalancedOptimizer(sgd(model), "cggm", model=seen, modalities=model.paths, fusion="fusion", **chosen)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    data: list[Batch] = batches(model, 4)
    for inputs, target in data:
        optimizer.zero_grad()
        mine = [*(x[slice(*share)] for x in inputs), target[slice(*share)]]
        for *xs, y in zip(*(x.chunk(micro) for x in mine), strict=True):
            (criterion(seen(*xs), y) / micro).backward()
        optimizer.step()
    method = optimizer._lifecycle.methods[0]
    assert isinstance(method, CGGM)
    assert method._built is not None
    probes = {
        f"{name}.{key}": value for name, p in method._built.modules.items() for key, value in p.state_dict().items()
    }
    return {"weights": dict(model.state_dict()), "probes": probes, "metrics": optimizer.metrics()}


def train_rank(rank: int, shares: list[Share], options: dict[str, Any], micro: int = 1) -> dict[str, Any]:
    return trained(True, shares[rank], options, micro)


def assert_ranks_are_equal(results: list[dict[str, Any]]) -> None:
    for part in ("weights", "probes"):
        first, second = (each[part] for each in results)
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
        assert all(value.isfinite().all() for value in first.values())
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], rel=0, abs=0, nan_ok=True)


PRESETS: dict[str, dict[str, Any]] = {
    "official": {},
    "paper": {"preset": "paper"},
    "late gradient": {"direction": "gradient", "direction_delay": 1},
    "mlp": {"probes": "mlp", "direction_delay": 0, "metric_ema": 0.5},
}


# Gradients are compared per micro-batch, so only the comparison of weights accumulates exactly.
@pytest.mark.parametrize(
    ("name", "micro"), [("official", 1), ("official", 3), ("paper", 1), ("late gradient", 1), ("mlp", 3)]
)
def test_two_ranks_equal_one_process_on_the_joined_batch(name: str, micro: int) -> None:
    results = on_ranks(train_rank, HALVES, PRESETS[name], micro)
    assert_ranks_are_equal(results)
    alone = trained(False, WHOLE, PRESETS[name])
    for part in ("weights", "probes"):
        for key, value in alone[part].items():
            assert (results[0][part][key] - value).abs().max() <= 1e-6, key
    assert results[0]["metrics"] == pytest.approx(alone["metrics"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("probes", ["norm", "transformer"])
def test_probes_with_buffers_and_dropout_stay_equal(probes: str) -> None:
    assert_ranks_are_equal(on_ranks(train_rank, HALVES, {"probes": probes}))


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_an_empty_rank_breaks_nothing(preset: str) -> None:
    for weights in on_ranks(trained_sum, preset):
        assert all(value.isfinite().all() for value in weights.values())


def trained_sum(rank: int, preset: Preset) -> dict[str, torch.Tensor]:
    """Train with a summed loss, which is 0 on no samples where the mean is NaN."""
    model = multimodal()
    seen = DistributedDataParallel(model)
    optimizer = BalancedOptimizer(
        sgd(model), "cggm", model=seen, modalities=model.paths, fusion="fusion", preset=preset, clip_grad_norm=0.8
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss(reduction="sum"))
    for inputs, target in batches(model, 3):
        optimizer.zero_grad()
        share = slice(0, 6 if rank == 0 else 0)
        criterion(seen(*(x[share] for x in inputs)), target[share]).backward()
        optimizer.step()
    return dict(model.state_dict())
