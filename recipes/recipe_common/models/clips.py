"""Networks for clips, one ResNet-18 per modality and a head, as in Peng et al. (CVPR 2022) and most papers since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from recipe_common.models.fusion import FUSIONS, LateFusionNet
from recipe_common.models.initialise import initialise
from recipe_common.models.resnet import FEATURE_SIZE, PictureEncoder, VisualEncoder
from recipe_common.models.weights import load_resnet18


def audio_visual_net(num_classes: int, fusion: str = "concat") -> LateFusionNet:
    """Return the network for spectrograms (B, 1, F, W) and frames (B, 3, T, H, W), both from scratch.

    Args:
        num_classes: Number of classes.
        fusion: Key of the head in `FUSIONS`.
    """
    return _joined({"audio": PictureEncoder(), "visual": VisualEncoder()}, num_classes, fusion)


def two_stream_net(num_classes: int, fusion: str = "concat", pretrained: Path | None = None) -> LateFusionNet:
    """Return the network for frames (B, 3, T, H, W) and optical flow (B, 2, T, H, W).

    Args:
        num_classes: Number of classes.
        fusion: Key of the head in `FUSIONS`.
        pretrained: Weights of torchvision's ResNet-18 for both; the first convolution of the flow stays random.

    Raises:
        RecipeError: If the weights cannot be read or are of another network.
    """
    encoders = {"rgb": VisualEncoder(3), "flow": VisualEncoder(2)}
    model = _joined(encoders, num_classes, fusion)
    if pretrained is not None:
        for encoder in encoders.values():
            load_resnet18(encoder.trunk, pretrained)
    return model


def _joined(encoders: Mapping[str, nn.Module], num_classes: int, fusion: str) -> LateFusionNet:
    model = LateFusionNet(encoders, FUSIONS[fusion](dict.fromkeys(encoders, FEATURE_SIZE), num_classes))
    initialise(model)
    return model
