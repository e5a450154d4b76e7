"""DeepLabV3+ with one encoder per modality, as in Guo et al. (NeurIPS 2024) for BraTS.

B batch, (H, W) pixels, multiples of 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipe_common.errors import require
from recipe_common.models.fusion import LateFusionNet

BACKBONES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
"""Bottleneck blocks per stage."""

ASPP_RATES = (2, 4, 6)  # beside the 1x1 convolution, which is rate 1
MULTI_GRID = (1, 2, 4)
MAPS = 256  # channels of the ASPP map, and of the low-level map, the output of the first stage of bottlenecks
STRIDE = 4  # of the low-level map
DEEPEST = 16  # of the ASPP map


class DeepLabEncoder(nn.Module):
    """Encoder of one modality: the ASPP map beside the map of the first residual stage, in one tensor.

    In the paper the decoder receives both maps, resizes the ASPP map to the size of the other and joins them.
    Balancing methods need one tensor per modality, so the encoder does that resizing; it acts on each channel alone,
    and the result of the decoder is the same.

    Torchvision's ResNet with output stride 16 and multi-grid 1, 2, 4 in the last stage, from scratch, then its ASPP of
    rates 1, 2, 4, 6 and the mean over the picture.

    Args:
        layers: Bottleneck blocks in each of the four stages.
        in_channels: Channels of the picture.
    """

    def __init__(self, layers: Sequence[int] = BACKBONES["resnet101"], in_channels: int = 1) -> None:
        super().__init__()
        resnet = require("torchvision.models.resnet")
        network = resnet.ResNet(resnet.Bottleneck, layers, replace_stride_with_dilation=[False, False, True])
        network.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        for index, block in enumerate(network.layer4):
            rate = 2 * MULTI_GRID[index % len(MULTI_GRID)]
            block.conv2.dilation, block.conv2.padding = (rate, rate), (rate, rate)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.low = network.layer1
        self.high = nn.Sequential(network.layer2, network.layer3, network.layer4)
        self.aspp = require("torchvision.models.segmentation.deeplabv3").ASPP(2048, list(ASPP_RATES), MAPS)
        _initialise(self.aspp)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 512, H / 4, W / 4): ASPP map, then low-level map."""
        low = self.low(self.stem(picture))
        return torch.cat([_resized(self.aspp(self.high(low)), low.shape[2:]), low], dim=1)


class DeepLabDecoder(nn.Module):
    """Fusion of the features of M encoders into logits, by the convolutions of the DeepLabV3+ decoder.

    Args:
        modalities: Number of modalities M.
        num_classes: Number of classes C.
    """

    def __init__(self, modalities: int, num_classes: int) -> None:
        super().__init__()
        self.reduce_low = nn.Sequential(*_convolution(modalities * MAPS, 48, 1))
        self.layers = nn.Sequential(
            *_convolution(modalities * MAPS + 48, 256, 3),
            nn.Dropout(0.5),
            *_convolution(256, 256, 3),
            nn.Dropout(0.1),
            nn.Conv2d(256, num_classes, kernel_size=1),
        )
        _initialise(self)

    def forward(self, *features: Tensor) -> Tensor:
        """M tensors (B, 512, H / 4, W / 4) -> (B, C, H, W)."""
        deep, low = zip(*(feature.chunk(2, dim=1) for feature in features), strict=True)
        logits = self.layers(torch.cat([*deep, self.reduce_low(torch.cat(low, dim=1))], dim=1))
        return _resized(logits, [STRIDE * side for side in logits.shape[2:]])


def deeplab(modalities: Sequence[str], num_classes: int, backbone: str = "resnet101") -> LateFusionNet:
    """Return the network: pictures (B, 1, H, W), one per modality, to logits (B, C, H, W)."""
    encoders = {name: DeepLabEncoder(BACKBONES[backbone]) for name in modalities}
    return LateFusionNet(encoders, DeepLabDecoder(len(modalities), num_classes))


def _convolution(before: int, after: int, size: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, kernel_size=size, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(after), nn.ReLU()


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def _initialise(module: nn.Module) -> None:
    """Draw convolutions by Kaiming's normal initialisation with fan-in; the ResNet keeps that with fan-out."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
