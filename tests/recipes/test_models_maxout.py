"""The MaxOut network against NumPy, and its size against AGM's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from recipe_common.models.maxout import Maxout, MaxoutFusion


def test_a_unit_is_the_largest_of_its_linear_pieces() -> None:
    layer = Maxout(3, 2, pieces=4)
    x = torch.randn(5, 3)
    weight, bias = layer.linear.weight.detach().numpy(), layer.linear.bias.detach().numpy()
    pieces = x.numpy() @ weight.T + bias
    expected = [[max(row[4 * unit : 4 * unit + 4]) for unit in range(2)] for row in pieces]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_evaluation_is_normalisation_and_maxout_in_turn() -> None:
    head = MaxoutFusion({"audio": 3, "image": 4}, 3, hidden=(5, 4))
    head(torch.randn(16, 3), torch.randn(16, 4))  # moves the running statistics
    head.eval()
    audio, image = torch.randn(2, 3), torch.randn(2, 4)
    x = np.concatenate([audio.numpy(), image.numpy()], axis=1)
    for layer in head.layers:
        if isinstance(layer, nn.BatchNorm1d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            x = (x - layer.running_mean.numpy()) / np.sqrt(layer.running_var.numpy() + layer.eps)
        elif isinstance(layer, Maxout):
            pieces = x @ layer.linear.weight.detach().numpy().T + layer.linear.bias.detach().numpy()
            x = np.maximum(pieces[:, ::2], pieces[:, 1::2])
    expected = x @ head.fc_out.weight.detach().numpy().T + head.fc_out.bias.detach().numpy()
    np.testing.assert_allclose(head(audio, image).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("in_size", "num_classes"), [(1024, 10), (2304, 2)])
def test_it_has_the_layers_and_the_size_of_agms(in_size: int, num_classes: int) -> None:
    head = MaxoutFusion({"both": in_size}, num_classes)
    linear = in_size * 4096 + 4096 + 2048 * 2048 + 2048 + 1024 * num_classes + num_classes
    norms = 2 * (in_size + 2048 + 1024)
    assert sum(parameter.numel() for parameter in head.parameters()) == linear + norms
    names = [type(layer).__name__ for layer in head.layers]
    assert names == ["BatchNorm1d", "Maxout", "BatchNorm1d", "Dropout", "Maxout", "BatchNorm1d", "Dropout"]
    assert [layer.eps for layer in head.layers if isinstance(layer, nn.BatchNorm1d)] == [1e-4, 1e-5, 1e-5]
    assert [layer.p for layer in head.layers if isinstance(layer, nn.Dropout)] == [0.3, 0.3]


def test_three_modalities_enter_side_by_side() -> None:
    sizes = {"text": 2, "audio": 3, "vision": 4}
    head = MaxoutFusion(sizes, 2, hidden=(8, 8)).eval()
    features = [torch.randn(4, size) for size in sizes.values()]
    assert head(*features).shape == (4, 2)
    torch.testing.assert_close(head(*features), head(torch.cat(features, dim=1)))
