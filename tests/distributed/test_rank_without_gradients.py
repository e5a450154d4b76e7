"""A rank whose backward did not happen takes part in the reduction of the step, so that the others need not wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from support.ranks import on_ranks
from support.training import balanced, batches, multimodal, weights

pytestmark = pytest.mark.slow


def step_of_rank(rank: int, method: str) -> dict[str, Any]:
    model = multimodal()
    optimizer = balanced(model, method)
    inputs, target = batches(model, 2)[rank]
    before = weights(model)
    loss = optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target)
    if rank == 0:
        loss.backward()
    optimizer.step()
    moved = any(not torch.equal(value, before[name]) for name, value in weights(model).items())
    return {"steps": optimizer._lifecycle.training.steps, "moved": moved}


@pytest.mark.parametrize("method", ["ogm", "cggm"])
def test_the_other_rank_steps_and_this_one_does_not(method: str) -> None:
    first, second = on_ranks(step_of_rank, method)
    assert first == {"steps": 1, "moved": True}
    assert second == {"steps": 0, "moved": False}
