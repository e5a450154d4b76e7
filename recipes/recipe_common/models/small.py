"""Small convolutional encoder for synthetic sets. B batch, D feature size."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

SMALL_SIZE = 64


class SmallEncoder(nn.Module):
    """Three convolutions of stride 2, averages over 4 x 4 regions, and a linear layer.

    Args:
        in_channels: Channels of the input.
        feature_size: Feature size D, a multiple of 4.
        batch_norm: Whether each convolution is followed by batch norm.
    """

    def __init__(self, in_channels: int = 1, feature_size: int = SMALL_SIZE, *, batch_norm: bool = False) -> None:
        super().__init__()
        widths = (in_channels, feature_size // 4, feature_size // 2, feature_size)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            norm = [nn.BatchNorm2d(after)] if batch_norm else []
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), *norm, nn.ReLU()]
        self.layers = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * feature_size, feature_size)
        )

    def forward(self, picture: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, D)."""
        feature: Tensor = self.layers(picture)
        return feature
