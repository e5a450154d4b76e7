"""Inputs with further samples behind them, and inputs that cannot have any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from modbalance._model.forward import map_tensors, with_samples


def test_samples_are_appended_in_nested_inputs() -> None:
    x, ids = torch.randn(3, 4), torch.arange(6).view(3, 2)
    value = ((x, [ids, "text"]), {"mask": ids > 0, "scale": 2.0})
    more = ((x[:1], [ids[:1], "text"]), {"mask": ids[:1] > 0, "scale": 2.0})
    (first, (second, text)), named = with_samples(value, more)
    assert torch.equal(first, torch.cat([x, x[:1]]))
    assert torch.equal(second, torch.cat([ids, ids[:1]]))
    assert text == "text"
    assert named["scale"] == 2.0
    assert named["mask"].shape == (4, 2)


def test_gradients_and_the_memory_format_are_kept() -> None:
    x = torch.randn(3, 4, 5, 5, requires_grad=True).to(memory_format=torch.channels_last)
    (joined,) = with_samples((x,), (x[:1] * 0,))
    assert joined.requires_grad
    assert joined.is_contiguous(memory_format=torch.channels_last)


ROWS = torch.ones(3, 2)
UNFIT: dict[str, Any] = {
    "no tensor": (1, "text"),
    "a number in a tensor": (ROWS, torch.ones(())),
    "two numbers of samples": (ROWS, torch.ones(5, 2)),
    "packed": (pack_sequence([torch.ones(1, 2)] * 3),),
    "packed, in a mapping": {"a": ROWS, "b": pack_sequence([torch.ones(1, 2)] * 3)},
    "sparse": (ROWS.to_sparse(),),
    "quantized": lambda: (torch.quantize_per_tensor(ROWS, 0.1, 0, torch.qint8),),  # creating one warns
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.filterwarnings("ignore:.*uantize.*")
def test_inputs_that_cannot_be_concatenated(name: str) -> None:
    def first(tensor: Tensor) -> Tensor:
        return tensor if not tensor.dim() or tensor.is_sparse else tensor[:1]

    value = UNFIT[name]
    value = value() if callable(value) else value
    assert with_samples(value, map_tensors(value, first)) is None


def test_samples_of_another_shape() -> None:
    assert with_samples((ROWS,), (torch.ones(1, 3),)) is None
