"""LeNet encoders of MultiBench for AV-MNIST. B batch."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Blocks of convolution, batch norm, ReLU and 2 x 2 max pooling; every block doubles the channels.

    After MultiBench (Liang et al., NeurIPS 2021): a first block of 5 x 5, then 3 x 3, no biases, Kaiming-uniform
    weights. The last maps are averaged over their pixels; for the sizes of AV-MNIST there is one.

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
