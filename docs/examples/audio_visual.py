"""A small model of two modalities, and synthetic samples of three classes: what the examples train."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Fusion(nn.Module):
    """Concatenates features, (B, 16) each, and returns logits (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 3)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(torch.cat([audio, visual], 1))


class AudioVisual(nn.Module):
    """Encodes audio (B, 20) and visual (B, 30), and fuses the features."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16))
        self.visual_net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16))
        self.fusion = Fusion()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Return the logits, (B, 3)."""
        return self.fusion(self.audio_net(audio), self.visual_net(visual))


def samples(count: int, seed: int = 0) -> TensorDataset:
    """Return audio, of which the class is easily told, visual, of which it is hardly told, and the class."""
    label = torch.randint(3, (count,), generator=(draw := torch.Generator().manual_seed(seed)))
    audio, visual = torch.randn(count, 20, generator=draw), torch.randn(count, 30, generator=draw)
    audio[:, :3] += 3 * nn.functional.one_hot(label, 3)
    visual[:, :3] += nn.functional.one_hot(label, 3)
    return TensorDataset(audio, visual, label)
