"""ResNet-18 encoders of pictures and frames: torchvision's network without pooling and classifier."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from recipe_common.errors import require

FEATURE_SIZE = 512


def resnet18_trunk(in_channels: int) -> nn.Sequential:
    """Return ResNet-18 from its first convolution to its last residual stage, with random weights.

    Args:
        in_channels: Channels of the input: 1 for a spectrogram, 2 for optical flow, 3 for a picture.

    Returns:
        A module from (B, in_channels, H, W) to (B, 512, ceil(H / 32), ceil(W / 32)).

    Raises:
        RecipeError: If torchvision cannot be imported.
    """
    network = require("torchvision.models").resnet18(weights=None)
    network.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    kept = [(name, child) for name, child in network.named_children() if name not in ("avgpool", "fc")]
    return nn.Sequential(OrderedDict(kept))


class PictureEncoder(nn.Module):
    """Encoder of a picture, such as a spectrogram, to one feature vector: ResNet-18, then the mean over space."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.trunk = resnet18_trunk(in_channels)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, 512)."""
        maps: Tensor = self.trunk(picture)
        return maps.mean(dim=(2, 3))


class VisualEncoder(nn.Module):
    """Encoder of frames to one feature vector: ResNet-18 on each frame, then the mean over time and space."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.trunk = resnet18_trunk(in_channels)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, channels, T, H, W) -> (B, 512)."""
        batch_size, channels, num_frames, height, width = frames.shape
        pictures = frames.transpose(1, 2).reshape(batch_size * num_frames, channels, height, width)
        maps: Tensor = self.trunk(pictures)
        return maps.reshape(batch_size, num_frames, *maps.shape[1:]).mean(dim=(1, 3, 4))
