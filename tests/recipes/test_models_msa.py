"""CGGM's transformer: against a second computation in NumPy, its sizes, and how it trains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from recipe_common.models.msa import Dropouts, MSANet, TransformerEncoder, positions

Array = NDArray[np.float64]
NO_DROPOUT = Dropouts(0, 0, 0, 0, 0)


def values(module: nn.Module, name: str) -> Array:
    return np.asarray(module.get_parameter(name).detach().double().numpy())


def linear(module: nn.Module, name: str, x: Array) -> Array:
    return x @ values(module, f"{name}.weight").T + values(module, f"{name}.bias")


def layer_norm(module: nn.Module, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * values(module, f"{name}.weight") + values(module, f"{name}.bias")


def attention(module: nn.Module, x: Array, heads: int) -> Array:
    width = x.shape[-1]
    joined = x @ values(module, "self_attn.in_proj_weight").T + values(module, "self_attn.in_proj_bias")
    query, key, value = joined[:, :width], joined[:, width : 2 * width], joined[:, 2 * width :]
    size = width // heads
    mixed = np.zeros_like(x)
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        for step in range(len(x)):
            weights = np.exp(key[:, columns] @ query[step, columns] / math.sqrt(size))
            mixed[step, columns] = weights / weights.sum() @ value[:, columns]
    return linear(module, "self_attn.out_proj", mixed)


def encode(encoder: nn.Module, x: Array, layers: int, heads: int) -> Array:
    """One sequence (T, width): pre-norm layers on sqrt(width) x + sinusoids, and a last norm."""
    length, width = x.shape
    table = np.zeros((length, width))
    for step in range(length):
        for i in range(width // 2):
            angle = (step + 1) * 10_000 ** (-i / (width // 2 - 1))
            table[step, i], table[step, width // 2 + i] = math.sin(angle), math.cos(angle)
    x = math.sqrt(width) * x + table
    for number in range(layers):
        layer = encoder.get_submodule(f"layers.{number}")
        x = x + attention(layer, layer_norm(layer, "norm1", x), heads)
        x = x + linear(layer, "linear2", np.maximum(linear(layer, "linear1", layer_norm(layer, "norm2", x)), 0))
    return layer_norm(encoder, "norm", x)


def expected(model: nn.Module, inputs: dict[str, Array], layers: int, fusion_layers: int, heads: int) -> Array:
    """The whole model on one sample."""
    joined = []
    for modality, x in inputs.items():
        weight = values(model, f"{modality}_net.projection.weight")[:, :, 0]
        projected = x @ weight.T + values(model, f"{modality}_net.projection.bias")
        joined.append(encode(model.get_submodule(f"{modality}_net.encoder"), projected, layers, heads))
    fusion = model.get_submodule("fusion_module")
    first = encode(fusion.get_submodule("encoder"), np.concatenate(joined), fusion_layers, heads)[0]
    block = linear(fusion, "residual.3", np.maximum(linear(fusion, "residual.0", first), 0))
    return linear(fusion, "out_layer", first + block)


def test_the_model_is_that_of_a_second_computation() -> None:
    torch.manual_seed(0)
    model = MSANet({"text": 6, "audio": 3, "vision": 4}, 2, layers=2, fusion_layers=1, heads=2, width=8).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # no bias of zero, no gain of one
    model.eval()
    inputs = {"text": torch.randn(2, 3, 6), "audio": torch.randn(2, 5, 3), "vision": torch.randn(2, 4, 4)}
    outputs = model(*(x.double() for x in inputs.values()))
    assert outputs.shape == (2, 2)
    for row in range(2):
        wanted = expected(model, {name: x[row].double().numpy() for name, x in inputs.items()}, 2, 1, 2)
        np.testing.assert_allclose(outputs[row].detach().numpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "outputs", "layers", "fusion_layers"),
    [
        ({"text": 300, "audio": 5, "vision": 20}, 1, 5, 3),  # CMU-MOSI
        ({"text": 1024, "audio": 130, "vision": 342}, 4, 4, 2),  # IEMOCAP
        ({"image": 768, "text": 768}, 101, 4, 2),  # Food-101
    ],
)
def test_the_parameters_of_the_papers(sizes: dict[str, int], outputs: int, layers: int, fusion_layers: int) -> None:
    model = MSANet(sizes, outputs, layers, fusion_layers)
    d = 40
    layer = (3 * d * d + 3 * d) + (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    encoders = sum(size * d + d + layers * layer + 2 * d for size in sizes.values())
    fusion = fusion_layers * layer + 2 * d + 2 * (d * d + d) + d * outputs + outputs
    assert sum(parameter.numel() for parameter in model.parameters()) == encoders + fusion
    assert [name for name, _ in model.named_children()] == [*(f"{name}_net" for name in sizes), "fusion_module"]
    *_, last = [module for module in model.fusion_module.modules() if isinstance(module, nn.Linear)]
    assert last.weight.shape == (outputs, d)  # what CGGM compares its classifiers with


def test_the_fusion_gets_a_sequence_of_each_modality_in_order() -> None:
    model = MSANet({"text": 6, "audio": 3}, 4, layers=1, fusion_layers=1, heads=2, width=8).eval()
    seen: list[Any] = []
    model.fusion_module.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    logits = model(torch.randn(2, 3, 6), torch.randn(2, 5, 3))
    assert [tuple(x.shape) for x in seen] == [(2, 3, 8), (2, 5, 8)]
    assert logits.shape == (2, 4)


def test_every_dropout_has_its_own_rate() -> None:
    torch.manual_seed(0)
    rates = Dropouts(attention=0.11, relu=0.12, embedding=0.13, residual=0.14, output=0.15)
    model = MSANet({"text": 6}, 4, layers=1, fusion_layers=1, heads=2, width=8, dropouts=rates)
    for encoder in (model.get_submodule("text_net.encoder"), model.get_submodule("fusion_module.encoder")):
        layer: Any = encoder.get_submodule("layers.0")
        assert encoder.get_submodule("dropout").p == 0.13
        assert layer.self_attn.dropout == 0.11
        assert (layer.dropout.p, layer.dropout1.p, layer.dropout2.p) == (0.12, 0.14, 0.14)
    assert model.get_submodule("fusion_module.residual.2").p == 0.15


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model, x = MSANet({"text": 6}, 4, 1, 1, heads=2, width=8), torch.randn(2, 3, 6)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    still = MSANet({"text": 6}, 4, 1, 1, heads=2, width=8, dropouts=NO_DROPOUT)
    assert torch.equal(still(x), still(x))


def test_layers_start_xavier_uniform_with_biases_of_zero() -> None:
    encoder = TransformerEncoder(40, 1, 5, NO_DROPOUT)
    bounds = {"self_attn.in_proj_weight": 160, "self_attn.out_proj.weight": 80, "linear1.weight": 200}
    for name, fans in {**bounds, "linear2.weight": 200}.items():
        weight = values(encoder, f"layers.0.{name}")
        bound = math.sqrt(6 / fans)
        assert np.abs(weight).max() <= bound * (1 + 1e-6)
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    for name in ("self_attn.in_proj_bias", "self_attn.out_proj.bias", "linear1.bias", "linear2.bias"):
        assert not values(encoder, f"layers.0.{name}").any()


def test_positions_of_any_length_and_width() -> None:
    table = positions(3, 5)
    assert table.shape == (3, 5)
    assert table[2].tolist() == pytest.approx([math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4), 0], abs=1e-6)


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = MSANet({"text": 6, "audio": 3}, 4, 1, 1, heads=2, width=8)
    model(torch.randn(8, 3, 6), torch.randn(8, 5, 3)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
