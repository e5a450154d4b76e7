"""Heads that turn an audio and a visual feature into logits. B batch, D feature size, C classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConcatFusion(nn.Module):
    """One linear layer on both features side by side."""

    def __init__(self, feature_size: int, num_classes: int) -> None:
        super().__init__()
        self.fc_out = nn.Linear(2 * feature_size, num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B, C)."""
        logits: Tensor = self.fc_out(torch.cat([audio, visual], dim=1))
        return logits


class SumFusion(nn.Module):
    """One linear layer per modality; their logits are added."""

    def __init__(self, feature_size: int, num_classes: int) -> None:
        super().__init__()
        self.fc_audio = nn.Linear(feature_size, num_classes)
        self.fc_visual = nn.Linear(feature_size, num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B, C)."""
        logits: Tensor = self.fc_audio(audio) + self.fc_visual(visual)
        return logits


class FiLMFusion(nn.Module):
    """Audio scales and shifts the visual feature (Perez et al., AAAI 2018)."""

    def __init__(self, feature_size: int, num_classes: int) -> None:
        super().__init__()
        self.fc_film = nn.Linear(feature_size, 2 * feature_size)
        self.fc_out = nn.Linear(feature_size, num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B, C)."""
        gamma, beta = self.fc_film(audio).chunk(2, dim=1)
        logits: Tensor = self.fc_out(gamma * visual + beta)
        return logits


class GatedFusion(nn.Module):
    """Audio opens and closes the visual feature (Kiela et al., AAAI 2018)."""

    def __init__(self, feature_size: int, num_classes: int) -> None:
        super().__init__()
        self.fc_audio = nn.Linear(feature_size, feature_size)
        self.fc_visual = nn.Linear(feature_size, feature_size)
        self.fc_out = nn.Linear(feature_size, num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B, C)."""
        gate = torch.sigmoid(self.fc_audio(audio))
        logits: Tensor = self.fc_out(gate * self.fc_visual(visual))
        return logits
