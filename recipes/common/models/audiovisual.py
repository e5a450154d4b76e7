"""The audio-visual network of the OGM-GE paper and of most papers after it."""

from __future__ import annotations

from torch import Tensor, nn

from common.models.fusion import ConcatFusion, FiLMFusion, GatedFusion, SumFusion
from common.models.initialise import initialise
from common.models.resnet import FEATURE_SIZE, AudioEncoder, VisualEncoder

_HEADS: dict[str, type[nn.Module]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "film": FiLMFusion,
    "gated": GatedFusion,
}
FUSIONS = tuple(_HEADS)


class AudioVisualNet(nn.Module):
    """Two ResNet-18 encoders trained from scratch and a fusion head.

    Args:
        num_classes: Number of classes C.
        fusion: One of ``FUSIONS``.
        audio_channels: Channels of the spectrogram.
        visual_channels: Channels of a frame.
    """

    def __init__(
        self, num_classes: int, fusion: str = "concat", *, audio_channels: int = 1, visual_channels: int = 3
    ) -> None:
        super().__init__()
        if fusion not in _HEADS:
            raise ValueError(f"`fusion` should be one of {', '.join(FUSIONS)}. Found `fusion = {fusion!r}`.")
        self.audio_net = AudioEncoder(audio_channels)
        self.visual_net = VisualEncoder(visual_channels)
        self.fusion_module = _HEADS[fusion](FEATURE_SIZE, num_classes)
        initialise(self)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Audio (B, 1, F, W) and frames (B, 3, T, H, W) to logits (B, C)."""
        logits: Tensor = self.fusion_module(self.audio_net(audio), self.visual_net(visual))
        return logits
