"""Reentrant activation checkpointing in passes in eval mode is found in the graph, and refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modbalance import BalancedOptimizer, ObservationError
from modbalance._model.reentrant import is_reentrant, next_number
from support.training import assert_same, batches, multimodal, train

LOSS = nn.CrossEntropyLoss()


class Checkpointed(nn.Module):
    """An encoder with dropout whose last layers are recomputed in the backward."""

    is_on = True

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        result: Tensor = checkpoint(self.rest, hidden, use_reentrant=True) if self.is_on else self.rest(hidden)
        return result


def model_and_optimizer(is_on: bool = True, **options: Any) -> tuple[Any, BalancedOptimizer]:
    torch.manual_seed(3)
    model = multimodal()
    encoder = model.encoders["a"] = Checkpointed()
    encoder.is_on = is_on
    inner = torch.optim.SGD(model.parameters(), 0.1)
    return model, BalancedOptimizer(inner, "agm", model=model, modalities=model.paths, fusion="fusion", **options)


@pytest.mark.parametrize("coalitions", ["auto", "factored", "full"])
def test_passes_in_eval_mode_that_would_be_recomputed_are_refused(coalitions: str) -> None:
    model, optimizer = model_and_optimizer(coalitions=coalitions)
    with pytest.raises(ObservationError, match=r"reentrant activation checkpointing.*`masked_pass_grad=False`"):
        train(model, optimizer, batches(model, 1))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # of torch, in masked passes
@pytest.mark.parametrize("options", [{"masked_pass_grad": False}, {"masked_mode": "train", "coalitions": "full"}])
def test_passes_without_gradient_or_in_training_mode_are_right(options: dict[str, Any]) -> None:
    found, expected = (model_and_optimizer(is_on, **options) for is_on in (True, False))
    for model, optimizer in (found, expected):
        torch.manual_seed(5)
        train(model, optimizer, batches(model, 3))

    assert_same(found[0], expected[0])


def test_nodes_of_earlier_passes_do_not_count() -> None:
    x = torch.ones(2, requires_grad=True)
    earlier = checkpoint(torch.sin, x * 2, use_reentrant=True)
    since = next_number(x)
    later = checkpoint(torch.sin, x * 2, use_reentrant=True)

    assert is_reentrant(earlier * 2, 0)
    assert not is_reentrant(earlier * 2, since)
    assert is_reentrant(earlier * later, since)
    assert not is_reentrant(checkpoint(torch.sin, x * 2, use_reentrant=False), since)
    assert not is_reentrant(x.detach(), since)
