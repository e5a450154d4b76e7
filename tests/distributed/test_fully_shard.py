"""Sharding replaces parameters: an optimizer that was built before it trains nothing, which is an error."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import SGD

from modbalance import BalancedOptimizer, ConfigError
from support.ranks import on_ranks
from support.training import batches, multimodal

pytestmark = pytest.mark.slow


METHODS = ("none", "mslr", "ogm")


def whole(weight: nn.Parameter) -> Tensor:
    """Return a copy of a sharded weight."""
    assert isinstance(weight, DTensor)
    return weight.full_tensor().detach().clone()


def train_sharded(rank: int, method: str, order: str) -> list[str | float]:
    """Return the error of the first step, if any, and how far it moved a weight of an encoder."""
    # Here and not above: it came with torch 2.6.
    from torch.distributed.fsdp import fully_shard

    model = multimodal()
    mesh = init_device_mesh("cpu", (1,))
    options = {"param_filter": "all"} if method == "ogm" else {}
    if order == "sharded first":
        fully_shard(model, mesh=mesh)
    inner = SGD(model.parameters(), lr=0.1)
    if order == "sharded between":
        fully_shard(model, mesh=mesh)
    optimizer = BalancedOptimizer(
        inner,
        method,
        model=model,
        modalities=model.paths,
        fusion="fusion",
        **options,  # type: ignore[arg-type]
    )
    if order == "sharded last":
        fully_shard(model, mesh=mesh)
    weight = model.get_parameter("encoders.a.0.weight")
    before = whole(weight)
    inputs, target = batches(model, 1)[0]
    optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target).backward()
    error = ""
    try:
        optimizer.step()
    except ConfigError as caught:
        error = str(caught)
    return [error, float((whole(weight) - before).abs().max())]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_is_sharded_first_trains(method: str) -> None:
    [(error, moved)] = on_ranks(train_sharded, method, "sharded first", ranks=1)
    assert error == ""
    assert moved > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["sharded between", "sharded last"])
def test_a_model_that_is_sharded_too_late_is_an_error(method: str, order: str) -> None:
    [(error, moved)] = on_ranks(train_sharded, method, order, ranks=1)
    assert "fully_shard" in error
    assert "`model.parameters()`" in error
    assert moved == 0
