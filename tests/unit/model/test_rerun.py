"""Running the fusion again, in the forms in which it can be named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modbalance import ConfigError
from support.batch_spy import coalition, look_once
from support.models import Multimodal, Recording
from support.training import batches, multimodal


class TwoParts(Multimodal):
    """The head is two modules, run one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = Recording(8, 6)
        self.out_layer = nn.Linear(6, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.out_layer(super().forward(*inputs).relu())


def test_a_list_of_modules_is_run_in_sequence() -> None:
    torch.manual_seed(0)
    model = TwoParts()
    model.fusion.eval()
    relu = nn.ReLU()
    inputs, target = batches(model, 1)[0]
    found = look_once(model, coalition("a", remove="features"), inputs, target, fusion=["fusion", relu, "out_layer"])
    z = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    torch.testing.assert_close(found, model.out_layer(model.fusion(z[0], 0 * z[1]).relu()))


def test_a_callable_fusion_takes_the_outputs_of_the_encoders() -> None:
    model = multimodal(head="film")
    inputs, target = batches(model, 1)[0]
    found = look_once(model, coalition("b", remove="features"), inputs, target, fusion=lambda a, b: model.fusion(a, b))
    z = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    torch.testing.assert_close(found, model.fusion(0 * z[0], z[1]))


def test_without_a_fusion_it_is_said_what_to_pass() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="fusion="):
        look_once(model, coalition("b", remove="features"), inputs, target, fusion=None)


def test_a_fusion_that_returns_no_tensor_is_refused() -> None:
    class Pair(Multimodal):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs)[0]

    torch.manual_seed(0)
    model = Pair(head="mlp")
    model.fusion.register_forward_hook(lambda *call: (call[2], None))
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="tuple"):
        look_once(model, coalition("b", remove="features"), inputs, target)
