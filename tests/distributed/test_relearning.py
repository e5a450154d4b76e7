"""Re-learning on two ranks against one process that sees all samples."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from modbalance import BalancedOptimizer
from modbalance.loaders import gather_samples
from support.models import AudioVisual, Multimodal
from support.ranks import on_ranks
from support.training import assert_same, audio_visual, balanced, batches, multimodal, sgd, train, weights

pytestmark = pytest.mark.slow

ALWAYS: dict[str, Any] = {"period": 1, "count": 100, "offset": -1}
SIZE = 25  # odd: a DistributedSampler repeats a sample
Loader = Any


def dataset(seed: int = 3, size: int = SIZE) -> TensorDataset:
    ((inputs, target),) = batches(multimodal(), 1, size, seed)
    return TensorDataset(*inputs, target)


def sampled(rank: int, data: TensorDataset, shuffle: bool, drop_last: bool = False) -> DistributedSampler[Any]:
    return DistributedSampler(data, 2, rank, shuffle=shuffle, drop_last=drop_last)


def loader_of(kind: str, rank: int, seed: int) -> Loader:
    """Return a loader of a rank, or of the only process where ``rank`` is -1."""
    data = dataset(seed)
    if rank == -1:
        return DataLoader(data, 7)
    if kind == "share":
        samples = [data[index] for index in (range(9) if rank == 0 else range(9, SIZE))]
        return DataLoader(samples, 4)  # type: ignore[arg-type]
    if kind == "first rank has all":
        return DataLoader(data, 7) if rank == 0 else []
    if kind == "second rank has all":
        return DataLoader(data, 7) if rank == 1 else []
    if kind == "everything":
        return DataLoader(data, 7)
    if kind == "batch sampler":
        return DataLoader(data, batch_sampler=BatchSampler(sampled(rank, data, True), 4, False))
    return DataLoader(data, 4, sampler=sampled(rank, data, kind == "shuffled"))


def optimizer_of(model: Multimodal, seen: nn.Module | None = None, **options: Any) -> BalancedOptimizer:
    return BalancedOptimizer(
        sgd(model), "relearning", model=seen or model, modalities=model.paths, fusion="fusion", **(ALWAYS | options)
    )


def steps(model: nn.Module, optimizer: BalancedOptimizer, rank: int) -> None:
    """Take two steps, each on half of a batch, or on all of it where ``rank`` is -1."""
    part = slice(None) if rank == -1 else slice(3 * rank, 3 * rank + 3)
    train(model, optimizer, [(tuple(x[part] for x in xs), y[part]) for xs, y in batches(multimodal(), 2)])


def run(kind: str, rank: int, **options: Any) -> dict[str, Any]:
    model = multimodal()
    trained = model if rank == -1 else DistributedDataParallel(model)
    optimizer = optimizer_of(model, trained, **options)
    for _ in range(2):
        steps(trained, optimizer, rank)
        optimizer.end_epoch(train=loader_of(kind, rank, seed=3), val=loader_of(kind, rank, seed=4))
    return {"weights": weights(model), "metrics": optimizer.metrics()}


def run_rank(rank: int, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    return run(kind, rank, **options)


def assert_ranks_agree(results: list[dict[str, Any]]) -> None:
    assert_same(results[0]["weights"], results[1]["weights"])
    assert results[0]["metrics"] == results[1]["metrics"]


KINDS = [
    "in order",
    "shuffled",
    "batch sampler",
    "share",
    "everything",
    "first rank has all",
    "second rank has all",
]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process_on_all_samples(kind: str) -> None:
    alone = run(kind, -1)
    results = on_ranks(run_rank, kind, {})
    assert_ranks_agree(results)
    assert results[0]["metrics"] == alone["metrics"]
    assert max(alone["metrics"][f"relearning/weight/{name}"] for name in "ab") > 0.01
    for name, value in alone["weights"].items():
        assert (results[0]["weights"][name] - value).abs().max() <= 1e-6, name


def test_the_order_of_the_sampler_is_restored() -> None:
    options = {"canonical_order": False, "n_init": 1}
    alone = run("in order", -1, **options)
    results = on_ranks(run_rank, "in order", options)
    assert_ranks_agree(results)
    assert results[0]["metrics"] == alone["metrics"]


def gathered_rank(rank: int, drop_last: bool) -> list[list[Tensor]]:
    run = balanced(multimodal(), "none")._lifecycle.run
    found = []
    for shuffle in (False, True):
        data = dataset()
        data.tensors = (torch.arange(SIZE),)
        loader = DataLoader(data, 4, sampler=sampled(rank, data, shuffle, drop_last))
        rows = torch.cat([batch[0] for batch in loader])
        found.append(gather_samples(run, loader, [rows, rows.double()]))
    return found


@pytest.mark.parametrize("drop_last", [False, True])
def test_padding_of_the_sampler_is_dropped(drop_last: bool) -> None:
    data = dataset()
    whole: DistributedSampler[Any] = DistributedSampler(data, 1, 0, shuffle=True)
    count = SIZE - 1 if drop_last else SIZE
    for in_order, shuffled in on_ranks(gathered_rank, drop_last):
        assert torch.equal(in_order[0], torch.arange(count))
        assert torch.equal(shuffled[0], torch.tensor(list(whole))[:count])
        assert torch.equal(shuffled[1], shuffled[0].double())


def unsampled_rank(rank: int) -> list[list[Tensor]]:
    run = balanced(multimodal(), "none")._lifecycle.run
    rows = torch.arange(5)
    return [gather_samples(run, [], [rows, rows / 2]), gather_samples(run, [], [rows, rows / 2 + rank])]


def test_copies_count_once_and_shares_all() -> None:
    rows = torch.arange(5)
    for copies, shares in on_ranks(unsampled_rank):
        assert torch.equal(copies[0], rows)
        assert torch.equal(copies[1], rows / 2)
        assert torch.equal(shares[0], torch.cat([rows, rows]))
        assert torch.equal(shares[1], torch.cat([rows / 2, rows / 2 + 1]))


def late_rank(rank: int) -> dict[str, Any]:
    model = multimodal(seed=rank)  # DDP gives rank 1 the weights of rank 0, after the optimizer was built
    optimizer = optimizer_of(model)
    wrapped = DistributedDataParallel(model)
    steps(wrapped, optimizer, rank)
    optimizer.end_epoch(train=loader_of("share", rank, 3), val=loader_of("share", rank, 4))
    return {"weights": weights(model), "metrics": optimizer.metrics()}


def test_initial_weights_are_those_of_the_first_rank() -> None:
    assert_ranks_agree(on_ranks(late_rank))


def recalibrated(rank: int) -> dict[str, Tensor]:
    model: AudioVisual = audio_visual()
    options = ALWAYS | {"recalibrate_bn": True}
    optimizer = balanced(model, "relearning", **options)
    data = batches(model, 4, size=6)
    train(model, optimizer, data[:1])
    loader = [(*inputs, target) for inputs, target in data]
    shares = {-1: loader, 0: loader[:3], 1: loader[3:]}
    optimizer.end_epoch(train=shares[rank], val=shares[rank])
    return weights(model)


def test_recalibrated_statistics_are_means_over_the_batches_of_all_ranks() -> None:
    first, second = on_ranks(recalibrated)
    assert_same(first, second)
    for name, value in recalibrated(-1).items():
        assert (first[name] - value).abs().max() <= 1e-6, name


def resumed_rank(rank: int) -> dict[str, Any]:
    model = multimodal()
    wrapped = DistributedDataParallel(model)
    optimizer = optimizer_of(model, wrapped)
    data = {"train": loader_of("shuffled", rank, 3), "val": loader_of("shuffled", rank, 4)}
    steps(wrapped, optimizer, rank)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = multimodal(seed=7)
    wrapped = DistributedDataParallel(model)
    optimizer = optimizer_of(model, wrapped)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["opt"])
    optimizer.end_epoch(train=data["train"], val=data["val"])
    steps(wrapped, optimizer, rank)
    optimizer.end_epoch(train=data["train"], val=data["val"])
    return {"weights": weights(model), "metrics": optimizer.metrics()}


def test_resumed_ranks_equal_uninterrupted_ones() -> None:
    resumed, whole = on_ranks(resumed_rank), on_ranks(run_rank, "shuffled", {})
    assert_ranks_agree(resumed)
    assert_ranks_agree([resumed[0], whole[0]])
