"""LeNets and the small networks: sizes by hand, layers against SciPy, and how encoders and fusion are joined."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import Tensor, nn

from recipe_common.models.fusion import ConcatFusion, LateFusionNet
from recipe_common.models.lenet import LeNet
from recipe_common.models.small import SmallEncoder


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def convolution_of(net: LeNet, position: int) -> nn.Conv2d:
    layer = net.layers[position]
    assert isinstance(layer, nn.Conv2d)
    return layer


@pytest.mark.parametrize(("blocks", "pixels", "features"), [(4, 28, 48), (6, 112, 192)])
def test_lenets_have_the_sizes_of_multibench(blocks: int, pixels: int, features: int) -> None:
    net = LeNet(blocks)
    assert net.feature_size == features
    maps = net.layers(torch.randn(2, 1, pixels, pixels))
    assert maps.shape == (2, features, 1, 1)
    widths = [6 * 2**block for block in range(blocks)]
    convolutions = 25 * 6 + sum(9 * before * after for before, after in pairwise(widths))
    assert size_of(net) == convolutions + 2 * sum(widths)


def test_a_batch_of_one_keeps_its_first_dimension() -> None:
    assert LeNet(4).eval()(torch.randn(1, 1, 28, 28)).shape == (1, 48)


def test_the_first_block_of_a_lenet() -> None:
    net = LeNet(blocks=1).eval()
    picture = torch.randn(1, 1, 8, 8)
    kernel = convolution_of(net, 0).weight.detach().numpy()[2, 0]
    maps = correlate2d(picture.numpy()[0, 0], kernel, mode="same").clip(min=0) / np.sqrt(1 + 1e-5)
    pooled = maps.reshape(4, 2, 4, 2).max(axis=(1, 3))
    assert net(picture)[0, 2].item() == pytest.approx(pooled.mean(), rel=1e-4)


def test_the_weights_of_a_lenet_are_kaiming_uniform() -> None:
    torch.manual_seed(0)
    weight = convolution_of(LeNet(6), 20).weight  # 96 to 192 channels
    bound = (6 / (96 * 9)) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_the_head_of_multibench() -> None:
    head = ConcatFusion({"audio": 192, "image": 48}, 10, hidden=100)
    assert size_of(head) == 240 * 100 + 100 + 100 * 10 + 10
    audio, image = torch.randn(3, 192), torch.randn(3, 48)
    first = head.hidden[0]
    assert isinstance(first, nn.Linear)
    hidden = (torch.cat([audio, image], dim=1) @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(head(audio, image), hidden @ head.fc_out.weight.T + head.fc_out.bias)


@pytest.mark.parametrize("pixels", [8, 28, 29, 112])
def test_a_small_encoder_takes_pictures_of_any_size(pixels: int) -> None:
    net = SmallEncoder(feature_size=8)
    assert net(torch.randn(2, 1, pixels, pixels)).shape == (2, 8)
    assert size_of(net) == (9 * 2 + 2) + (9 * 2 * 4 + 4) + (9 * 4 * 8 + 8) + (16 * 8 * 8 + 8)


def test_batch_norm_is_behind_each_convolution_on_request() -> None:
    names = [type(layer).__name__ for layer in SmallEncoder(batch_norm=True).layers]
    assert names[:9] == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    assert size_of(SmallEncoder(batch_norm=True)) - size_of(SmallEncoder()) == 2 * (16 + 32 + 64)


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_late_fusion_calls_encoders_and_fusion_in_order() -> None:
    net = LateFusionNet({"audio": Doubling(), "image": nn.Identity()}, ConcatFusion({"audio": 3, "image": 3}, 2))
    assert [name for name, _ in net.named_children()] == ["audio_net", "image_net", "fusion_module"]
    audio, image = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(net(audio, image), net.fusion_module(2 * audio, image))
    with pytest.raises(ValueError, match=r"should be audio, image\. Found 1 inputs"):
        net(audio)
