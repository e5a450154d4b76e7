"""The network of the papers for pictures and optical flow."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from common.models.fusion import ConcatFusion, FiLMFusion, GatedFusion, SumFusion
from common.models.initialise import initialise
from common.models.resnet import FEATURE_SIZE, VisualEncoder
from common.models.small import LateFusionNet
from common.models.weights import load_resnet18

_HEADS: dict[str, type[nn.Module]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "film": FiLMFusion,
    "gated": GatedFusion,
}


def two_stream_net(num_classes: int, fusion: str = "concat", pretrained: Path | None = None) -> LateFusionNet:
    """Return one ResNet-18 for frames (B, 3, T, H, W), one for flow (B, 2, T, H, W), and a fusion head.

    Args:
        num_classes: Number of classes.
        fusion: One of `common.models.FUSIONS`; where it is not symmetric, frames take the place of audio.
        pretrained: Weights of torchvision's ResNet-18 for both; the first convolution of the flow stays random.

    Raises:
        RecipeError: If the weights cannot be read or are of another network.
    """
    encoders = {"rgb": VisualEncoder(3), "flow": VisualEncoder(2)}
    model = LateFusionNet(encoders, _HEADS[fusion](FEATURE_SIZE, num_classes))
    initialise(model)
    if pretrained is not None:
        for encoder in encoders.values():
            load_resnet18(encoder.trunk, pretrained)
    return model
