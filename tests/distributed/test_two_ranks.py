"""Two ranks of DistributedDataParallel against one process on the joined batch."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from modbalance import BalancedOptimizer
from support.models import ConcatFusion, Multimodal
from support.ranks import on_ranks
from support.training import Batch, batches, multimodal, sgd

pytestmark = pytest.mark.slow

Shares = list[tuple[int, int]]

HALVES: Shares = [(0, 3), (3, 6)]
METHODS = ["none", "ogm", "ogm_ge"]


def optimizer_of(model: Multimodal, method: str, seen: nn.Module | None = None, **options: Any) -> BalancedOptimizer:
    """Wrap an optimizer of the bare model; ``seen`` is what the user passes as `model=`."""
    if method != "none":
        options["param_filter"] = "all"
    return BalancedOptimizer(
        sgd(model), method, model=seen or model, modalities=model.paths, fusion="fusion", **options
    )


def shard(batch: Batch, share: tuple[int, int]) -> Batch:
    inputs, target = batch
    return tuple(x[slice(*share)] for x in inputs), target[slice(*share)]


def steps(
    model: nn.Module, optimizer: BalancedOptimizer, data: list[Batch], micro: int = 1, loss_fn: nn.Module | None = None
) -> None:
    """Take a step per batch, accumulated over ``micro`` parts; DDP synchronizes in the last one."""
    criterion = optimizer.criterion(loss_fn or nn.CrossEntropyLoss())
    for inputs, target in data:
        optimizer.zero_grad()
        parts = list(zip(*(x.chunk(micro) for x in inputs), target.chunk(micro), strict=True))
        for index, (*xs, y) in enumerate(parts):
            is_last = index == len(parts) - 1
            with synchronized(model, is_last):
                (criterion(model(*xs), y) / len(parts)).backward()
        optimizer.step()


def synchronized(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


def result(model: nn.Module, optimizer: BalancedOptimizer) -> dict[str, Any]:
    state = optimizer.state_dict()["modbalance"]
    return {"weights": dict(model.state_dict()), "metrics": optimizer.metrics(), "unimodal": state["unimodal"]}


def train_rank(
    rank: int,
    method: str,
    shares: Shares,
    options: dict[str, Any],
    head: str = "concat",
    names: str = "ab",
    micro: int = 1,
    passes_bare: bool = False,
) -> dict[str, Any]:
    model = multimodal(names, head)
    wrapped = DistributedDataParallel(model)
    optimizer = optimizer_of(model, method, model if passes_bare else wrapped, **options)
    steps(wrapped, optimizer, [shard(batch, shares[rank]) for batch in batches(model, 4)], micro)
    return result(model, optimizer)


def train_alone(
    method: str, share: tuple[int, int], options: dict[str, Any], head: str = "concat", names: str = "ab"
) -> dict[str, Any]:
    model = multimodal(names, head)
    optimizer = optimizer_of(model, method, **options)
    steps(model, optimizer, [shard(batch, share) for batch in batches(model, 4)])
    return result(model, optimizer)


def assert_ranks_are_equal(results: list[dict[str, Any]]) -> None:
    first, second = (each["weights"] for each in results)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert all(value.isfinite().all() for value in first.values())
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], rel=0, abs=0, nan_ok=True)
    assert results[0]["unimodal"] == results[1]["unimodal"]


def assert_equal_alone(ranks: dict[str, Any], alone: dict[str, Any]) -> None:
    for name, value in alone["weights"].items():
        assert (ranks["weights"][name] - value).abs().max() <= 1e-6, name
    assert ranks["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
    assert ranks["unimodal"] == alone["unimodal"]


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one_process_on_the_joined_batch(method: str, micro: int) -> None:
    results = on_ranks(train_rank, method, HALVES, {}, "concat", "ab", micro)
    assert_ranks_are_equal(results)
    assert_equal_alone(results[0], train_alone(method, (0, 6), {}))


@pytest.mark.parametrize(("head", "names"), [("film", "ab"), ("attention", "abc"), ("mlp", "abcd")])
def test_any_head_and_number_of_modalities(head: str, names: str) -> None:
    options = {"ratio": "min", "noise_on": "suppressed"}
    results = on_ranks(train_rank, "ogm_ge", HALVES, options, head, names)
    assert_ranks_are_equal(results)
    assert_equal_alone(results[0], train_alone("ogm_ge", (0, 6), options, head, names))


def test_a_bare_model_may_be_passed() -> None:
    results = on_ranks(train_rank, "ogm_ge", HALVES, {}, "concat", "ab", 1, True)
    assert_ranks_are_equal(results)
    assert_equal_alone(results[0], train_alone("ogm_ge", (0, 6), {}))


def train_rank_by_each(rank: int, shares: Shares) -> list[dict[str, Any]]:
    return [train_rank(rank, method, shares, {}) for method in METHODS]


@pytest.mark.parametrize("shares", [[(0, 5), (5, 6)], [(0, 6), (6, 6)], [(0, 0), (0, 6)], [(0, 0), (0, 0)]])
def test_unequal_and_empty_shards(shares: Shares) -> None:
    for results in zip(*on_ranks(train_rank_by_each, shares), strict=True):
        assert_ranks_are_equal(list(results))


def coefficients_rank(rank: int, shares: Shares) -> dict[str, float]:
    model = multimodal()
    wrapped = DistributedDataParallel(model)
    optimizer = optimizer_of(model, "ogm", wrapped)
    steps(wrapped, optimizer, [shard(batches(model, 1)[0], shares[rank])])
    return optimizer.metrics()


@pytest.mark.parametrize("shares", [[(0, 5), (5, 6)], [(0, 6), (6, 6)], [(0, 0), (0, 6)]])
def test_statistics_are_those_of_the_joined_batch(shares: Shares) -> None:
    model = multimodal()
    optimizer = optimizer_of(model, "ogm")
    steps(model, optimizer, batches(model, 1))
    for metrics in on_ranks(coefficients_rank, shares):
        assert metrics == pytest.approx(optimizer.metrics(), rel=1e-5)


class ScalesLargeInputs(ConcatFusion):
    """A head that looks linear, and is, as long as the features are small."""

    def forward(self, *features: Tensor) -> Tensor:
        logits = super().forward(*features)
        return logits * 2 if max(float(f.detach().abs().max()) for f in features) > 100 else logits


def disagreeing_rank(rank: int, large: int) -> dict[str, Any]:
    model = multimodal()
    fusion = ScalesLargeInputs((4, 4), 3)
    fusion.load_state_dict(model.fusion.state_dict())
    model.fusion = fusion
    if rank == large:
        model.encoders["a"].register_forward_hook(lambda *call: call[2] * 1000)
    wrapped = DistributedDataParallel(model)
    optimizer = optimizer_of(model, "ogm", wrapped)
    steps(wrapped, optimizer, [shard(batches(model, 1)[0], HALVES[rank])])
    return result(model, optimizer)


@pytest.mark.parametrize(("large", "kind"), [(0, "zero"), (1, "zero"), (-1, "slice")])
def test_ranks_agree_on_how_unimodal_logits_are_obtained(large: int, kind: str) -> None:
    results = on_ranks(disagreeing_rank, large)
    assert [each["unimodal"] for each in results] == [kind, kind]
    assert_ranks_are_equal(results)


def resume_rank(rank: int, method: str) -> dict[str, Any]:
    data = [shard(batch, HALVES[rank]) for batch in batches(multimodal(), 4)]

    def start(seed: int) -> tuple[Multimodal, nn.Module, BalancedOptimizer]:
        model = multimodal(seed=seed)
        wrapped = DistributedDataParallel(model)
        return model, wrapped, optimizer_of(model, method, wrapped)

    model, wrapped, optimizer = start(0)
    steps(wrapped, optimizer, data[:2])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model, wrapped, optimizer = start(7)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    steps(wrapped, optimizer, data[2:])
    return result(model, optimizer)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_ranks_equal_uninterrupted_ones(method: str) -> None:
    resumed = on_ranks(resume_rank, method)
    whole = on_ranks(train_rank, method, HALVES, {})
    assert_ranks_are_equal([resumed[0], whole[0]])
    assert_ranks_are_equal(resumed)


def failing_rank(rank: int) -> int:
    if rank == 1:
        raise ValueError("found on rank one")
    torch.distributed.barrier()
    return rank


def test_a_failing_rank_is_reported_and_the_other_does_not_wait() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rank 1:.*found on rank one"):
        on_ranks(failing_rank)
