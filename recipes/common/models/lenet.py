"""The small networks that MultiBench trains on AV-MNIST. B batch, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """Blocks of convolution, batch norm, ReLU and 2 x 2 max pooling; every block doubles the channels.

    After MultiBench (Liang et al., NeurIPS 2021): a first block of 5 x 5, then 3 x 3, no biases, Kaiming-uniform
    weights. What is left of the picture is averaged; for the sizes of AV-MNIST that is one pixel.

    Args:
        blocks: Number of blocks: 4 for pictures of 28 pixels, 6 for spectrograms of 112.
        in_channels: Channels of the input.
        channels: Channels of the first block.
    """

    def __init__(self, blocks: int, in_channels: int = 1, channels: int = 6) -> None:
        super().__init__()
        widths = [in_channels, *(channels * 2**block for block in range(blocks))]
        layers: list[nn.Module] = []
        for block in range(blocks):
            kernel = 5 if block == 0 else 3
            layers += [
                nn.Conv2d(widths[block], widths[block + 1], kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(widths[block + 1]),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.layers = nn.Sequential(*layers)
        self.smallest_input = 2**blocks
        self.feature_size = widths[-1]
        self.apply(_initialise)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, in_channels, S, S) with S >= 2 ** blocks -> (B, feature_size)."""
        maps: Tensor = self.layers(picture)
        return maps.mean(dim=(2, 3))


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_uniform_(layer.weight)


class MLPFusion(nn.Module):
    """All features side by side into a network with hidden layers.

    Args:
        in_size: Sizes of all features together.
        num_classes: Number of classes C.
        hidden: Sizes of the hidden layers, each followed by ReLU.
    """

    def __init__(self, in_size: int, num_classes: int, hidden: Sequence[int] = (100,)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((in_size, *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.fc_out = nn.Linear(hidden[-1], num_classes)

    def forward(self, *features: Tensor) -> Tensor:
        """One (B, size) per modality -> (B, C)."""
        logits: Tensor = self.fc_out(self.layers(torch.cat(features, dim=1)))
        return logits
