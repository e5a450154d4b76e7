"""U-Net segmentation: one U-Net per modality, joined at full resolution. B batch, (H, W) pixels, multiples of 16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recipe_common.errors import require
from recipe_common.models.fusion import LateFusionNet

LEVELS = 5
DEEPEST = 2 ** (LEVELS - 1)


class MapFusion(nn.Module):
    """A 3x3 convolution over the maps of all modalities, batch norm, ReLU, and a 1x1 convolution to logits.

    Args:
        modalities: Number of modalities M.
        width: Channels D of the map of a modality, and of the layer between the two convolutions.
        num_classes: Number of classes C.
    """

    def __init__(self, modalities: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(modalities * width, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, num_classes, kernel_size=1),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        """M tensors (B, D, H, W) -> (B, C, H, W)."""
        logits: Tensor = self.layers(torch.cat(maps, dim=1))
        return logits


def unet(modalities: Sequence[str], num_classes: int, width: int = 32) -> LateFusionNet:
    """Return the network: pictures (B, 1, H, W), one per modality, to logits (B, C, H, W).

    Each encoder is MONAI's residual `UNet` (Kerfoot et al., 2019) with five levels of width D, 2 D, ..., 16 D, two
    residual units per level and batch norm, which gives D maps at full resolution.

    Args:
        modalities: Names of the modalities.
        num_classes: Number of classes C.
        width: Channels D of the first level.
    """
    nets = require("monai.networks.nets")
    channels = [width * 2**level for level in range(LEVELS)]

    def encoder() -> nn.Module:
        net: nn.Module = nets.UNet(2, 1, width, channels, [2] * (LEVELS - 1), num_res_units=2, norm="batch")
        return net

    return LateFusionNet({name: encoder() for name in modalities}, MapFusion(len(modalities), width, num_classes))
