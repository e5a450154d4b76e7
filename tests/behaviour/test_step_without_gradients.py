"""A step without gradients is none: methods take nothing from a batch whose backward did not happen or was dropped."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from modbalance import BalancedOptimizer
from support.methods import METHODS, acting
from support.training import assert_same, balanced, batches, multimodal_for, train, weights


def saved(optimizer: BalancedOptimizer) -> bytes:
    stream = io.BytesIO()
    torch.save(optimizer.state_dict()["modbalance"], stream)
    return stream.getvalue()


@pytest.mark.parametrize("case", ["no backward", "dropped"])
@pytest.mark.parametrize("method", METHODS[1:])
def test_nothing_is_committed(method: str, case: str) -> None:
    model = multimodal_for(method)
    optimizer = balanced(model, method, **acting(method))
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    first, second, third = batches(model, 3)
    train(model, optimizer, [first], criterion)
    optimizer.zero_grad()
    before, state, steps = weights(model), saved(optimizer), optimizer._lifecycle.training.steps

    inputs, target = second
    loss = criterion(model(*(x * float("nan") for x in inputs)), target)
    if case == "dropped":
        loss.backward()
        optimizer.zero_grad()
    optimizer.step()

    assert_same(weights(model), before)
    assert saved(optimizer) == state
    train(model, optimizer, [third], criterion)
    assert optimizer._lifecycle.training.steps == steps + 1
    assert all(value.isfinite().all() for value in weights(model).values())
