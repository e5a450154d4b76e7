"""Uneven numbers of batches, in a `Join` context: the ranks that still train decide, the others follow them."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any, cast

import pytest
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from modbalance import BalancedOptimizer, ConfigError
from support.ranks import on_ranks
from support.training import Batch, batches, multimodal, sgd

pytestmark = pytest.mark.slow

EPOCHS = [(5, 3), (2, 4), (3, 3)]
"""Number of batches of each rank."""
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "ogm": {"param_filter": "all"},
    "ogm_ge": {"param_filter": "all"},
    "cggm": {"coeff_clip": (-2.0, 2.0)},
    "dgl": {},
    "mslr": {"memory": 1, "init": {"a": 0.5}},
    "mses": {"patience": 0},
}
Share = tuple[int, int]
HALVES: list[Share] = [(0, 3), (3, 6)]


def metrics_of(epoch: int) -> dict[str, dict[str, float]]:
    return {"loss": {"a": 1.0 + epoch, "b": 1.0}, "accuracy": {"a": 0.3 + 0.1 * epoch, "b": 0.5}}


def optimizer_of(model: Any, seen: nn.Module, method: str, **more: Any) -> BalancedOptimizer:
    options = METHODS[method] | more
    return BalancedOptimizer(
        sgd(model), method, model=seen, modalities=model.paths, fusion="fusion", clip_grad_norm=0.8, **options
    )


def outcome(model: nn.Module, optimizer: BalancedOptimizer) -> dict[str, Any]:
    return {"weights": dict(model.state_dict()), "state": optimizer.state_dict()}


def step(seen: nn.Module, optimizer: BalancedOptimizer, batch: Batch, share: Share, micro: int = 1) -> None:
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    inputs, target = batch
    optimizer.zero_grad()
    mine = [*(x[slice(*share)] for x in inputs), target[slice(*share)]]
    parts = list(zip(*(x.chunk(micro) for x in mine), strict=True))
    for index, (*xs, y) in enumerate(parts):
        if isinstance(seen, DistributedDataParallel):
            seen.require_backward_grad_sync = index == len(parts) - 1
        (criterion(seen(*xs), y) / micro).backward()
    optimizer.step()


def train_rank(rank: int, method: str, micro: int = 1) -> dict[str, Any]:
    model = multimodal()
    wrapped = DistributedDataParallel(model)
    optimizer = optimizer_of(model, wrapped, method)
    for epoch, counts in enumerate(EPOCHS):
        data = batches(model, max(counts), seed=epoch)
        with Join([wrapped, cast(Any, optimizer)], divide_by_initial_world_size=False):
            for batch in data[: counts[rank]]:
                step(wrapped, optimizer, batch, HALVES[rank], micro)
        optimizer.end_epoch(metrics=metrics_of(epoch))
    return outcome(model, optimizer)


def train_alone(method: str) -> dict[str, Any]:
    """Train on joined batches, and on the share of one rank alone where the other has none."""
    model = multimodal()
    optimizer = optimizer_of(model, model, method)
    for epoch, (first, second) in enumerate(EPOCHS):
        for index, batch in enumerate(batches(model, max(first, second), seed=epoch)):
            step(model, optimizer, batch, (0 if index < first else 3, 6 if index < second else 3))
        optimizer.end_epoch(metrics=metrics_of(epoch))
    return outcome(model, optimizer)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, each in items for key, leaf in leaves(each, f"{path}/{name}").items()}
    return {path: value}


def assert_equal(actual: dict[str, Any], expected: dict[str, Any], atol: float) -> None:
    one, two = leaves(actual), leaves(expected)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            assert (value.double() - two[name].double()).abs().max() <= atol, name
        elif isinstance(value, float):
            assert value == pytest.approx(two[name], abs=atol), name
        else:
            assert value == two[name], name


@pytest.mark.parametrize(("method", "micro"), [*((name, 1) for name in METHODS), ("ogm", 3)])
def test_the_ranks_that_still_train_decide_and_all_end_alike(method: str, micro: int) -> None:
    first, second = on_ranks(train_rank, method, micro)
    assert_equal(first, second, 0)
    assert_equal(first["weights"], train_alone(method)["weights"], 1e-6)


# Refusals: an error on every rank, before one waits for another


def refused(rank: int, case: str) -> str:
    """Return the error of a training in a `Join` context."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = multimodal()
    wrapped = DistributedDataParallel(model)
    method = {"agm": "agm", "agm, model alone": "agm", "gradient": "cggm"}.get(case, "ogm")
    options: dict[str, Any] = {"cggm": {"direction": "gradient"}, "agm": {}, "ogm": {"param_filter": "all"}}[method]
    inner: Any = sgd(model)
    if case.startswith("zero"):
        first, *rest = model.children()
        parameters = first.parameters() if case == "zero among others" else model.parameters()
        inner = ZeroRedundancyOptimizer(parameters, SGD, lr=0.1)
        if case == "zero among others":
            inner = [inner, SGD([p for each in rest for p in each.parameters()], lr=0.1)]
    optimizer = BalancedOptimizer(inner, method, model=wrapped, modalities=model.paths, fusion="fusion", **options)
    joined: Any = {"model alone": [wrapped], "agm, model alone": [wrapped], "order": [optimizer, wrapped]}.get(
        case, [wrapped, optimizer]
    )
    scaler = GradScaler("cpu", enabled=case == "scaler")
    try:
        with Join(joined):
            for inputs, target in batches(model, 4)[: 4 - 2 * rank]:
                loss = optimizer.criterion(nn.CrossEntropyLoss())(wrapped(*inputs), target)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                if case == "inside":
                    optimizer._lifecycle.run.mean(loss.detach())
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("agm", ["`agm`", "outside of `opt.step()`", "drop_last=True"]),
        ("gradient", ["`cggm`", "outside of `opt.step()`", "drop_last=True"]),
        ("model alone", ["`ogm`", "Join([model, opt])"]),
        ("order", ["optimizer first", "Join([model, opt])"]),
        ("agm, model alone", ["`agm`", "without `Join`"]),
        ("zero", ["ZeroRedundancyOptimizer", "without `Join`"]),
        ("zero among others", ["ZeroRedundancyOptimizer", "without `Join`"]),
        ("scaler", ["GradScaler", "bfloat16"]),
        ("inside", ["outside of `opt.step()`", "after the context"]),
    ],
)
def test_what_a_rank_without_batches_could_not_follow_is_refused(case: str, words: list[str]) -> None:
    for error in on_ranks(refused, case):
        assert [each for each in words if each not in error] == []


def left_empty(rank: int) -> str:
    model = multimodal()
    wrapped = DistributedDataParallel(model)
    optimizer = optimizer_of(model, wrapped, "ogm", unimodal="slice")  # "auto" is a vote of all ranks on a first batch
    with Join([wrapped, cast(Any, optimizer)]):
        for batch in batches(model, 2) if rank == 0 else []:
            step(wrapped, optimizer, batch, HALVES[rank])
    return ""


def test_a_rank_without_any_batch_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="at least one batch in a `Join` context"):
        on_ranks(left_empty)


def second_context(rank: int, joins: bool, fails: bool) -> str:
    """Return the error of a second epoch, after one that has ended or failed, with the model alone in the context."""
    model = multimodal()
    wrapped = DistributedDataParallel(model)
    optimizer = optimizer_of(model, wrapped, "ogm")
    data = batches(model, 3)
    with suppress(KeyboardInterrupt), Join([wrapped, cast(Any, optimizer)]):
        for batch in data[: 3 - rank]:
            step(wrapped, optimizer, batch, HALVES[rank])
            if fails:
                raise KeyboardInterrupt
    try:
        with Join([wrapped]) if joins else nullcontext():
            for batch in data[: 3 - rank if joins else 3]:
                step(wrapped, optimizer, batch, HALVES[rank])
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("fails", [False, True])
def test_a_later_context_with_the_model_alone_is_refused(fails: bool) -> None:
    for error in on_ranks(second_context, True, fails):
        assert "Found the model alone" in error


def test_even_epochs_after_a_context_need_none() -> None:
    assert on_ranks(second_context, False, False) == ["", ""]
