"""Multimodal transformer on feature sequences, as in Guo et al. (NeurIPS 2024).

B batch, T_m time steps and D_m features of modality m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipe_common.models.fusion import LateFusionNet
from recipe_common.models.heads import check_width


@attrs.frozen
class Dropouts:
    """Dropout rates, 0 to 1; defaults are those of the code of Guo et al. for CMU-MOSI.

    Attributes:
        attention: Rate of attention weights.
        relu: Rate of the hidden layer of the feed-forward part.
        embedding: Rate of the scaled input plus its positions.
        residual: Rate of the residual branch in each half of a layer.
        output: Rate in the residual block in front of the last layer.
    """

    attention: float = 0.15
    relu: float = 0.15
    embedding: float = 0.2
    residual: float = 0.1
    output: float = 0.1


class MSANet(LateFusionNet):
    """One transformer encoder per modality, joined along time, and a fusion encoder with the output at position 0.

    Source: `MSAModel` (and, for two modalities, `FoodModel`) of the code of Guo et al., "Classifier-guided Gradient
    Modulation for Enhanced Multimodal Learning", NeurIPS 2024.

    Args:
        sizes: Features D_m by modality, in the order in which sequences (B, T_m, D_m) are passed and joined.
        outputs: Number of outputs C: classes, or 1 for regression.
        layers: Layers of the encoder of each modality.
        fusion_layers: Layers of the fusion encoder.
        heads: Attention heads; a divisor of `width`.
        width: Width of the projection of each modality; even.
        dropouts: Dropout rates.

    Raises:
        RecipeError: If `width` is no multiple of `heads`.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        outputs: int,
        layers: int,
        fusion_layers: int,
        heads: int = 5,
        width: int = 40,
        dropouts: Dropouts = Dropouts(),
    ) -> None:
        encoders = {name: SequenceEncoder(size, width, layers, heads, dropouts) for name, size in sizes.items()}
        super().__init__(encoders, MSAFusion(outputs, width, fusion_layers, heads, dropouts))


class SequenceEncoder(nn.Module):
    """Encoder of one modality: projects every time step and encodes the sequence, (B, T, D) -> (B, T, width)."""

    def __init__(self, size: int, width: int, layers: int, heads: int, dropouts: Dropouts) -> None:
        super().__init__()
        self.projection = nn.Conv1d(size, width, kernel_size=1)
        self.encoder = TransformerEncoder(width, layers, heads, dropouts)

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, width)."""
        encoded: Tensor = self.encoder(self.projection(sequence.transpose(1, 2)).transpose(1, 2))
        return encoded


class MSAFusion(nn.Module):
    """Joins features (B, T_m, width) along time, encodes them, and maps the first position to outputs (B, C)."""

    def __init__(self, outputs: int, width: int, layers: int, heads: int, dropouts: Dropouts) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(width, layers, heads, dropouts)
        self.residual = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropouts.output), nn.Linear(width, width)
        )
        self.out_layer = nn.Linear(width, outputs)

    def forward(self, *features: Tensor) -> Tensor:
        """One feature (B, T_m, width) per modality to outputs (B, C)."""
        first = self.encoder(torch.cat(features, dim=1))[:, 0]
        outputs: Tensor = self.out_layer(first + self.residual(first))
        return outputs


class TransformerEncoder(nn.Module):
    """Scaled input plus sinusoidal positions, then pre-norm layers and a layer norm, (B, T, width) -> same.

    The layers are those of torch, with the initial weights of the authors: Xavier-uniform, biases of zero. One thing
    differs: with the positions of MulT, which their encoder follows, a step whose first feature is exactly 0 has none.
    Here every step has its position, including those of a modality that is zeroed on purpose.
    """

    def __init__(self, width: int, layers: int, heads: int, dropouts: Dropouts) -> None:
        super().__init__()
        check_width(width, heads)
        self.scale = math.sqrt(width)
        self.dropout = nn.Dropout(dropouts.embedding)
        self.layers = nn.ModuleList(_layer(width, heads, dropouts) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        length, width = sequence.shape[1:]
        hidden = self.dropout(self.scale * sequence + positions(length, width, sequence.device).to(sequence.dtype))
        for layer in self.layers:
            hidden = layer(hidden)
        normed: Tensor = self.norm(hidden)
        return normed


def positions(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return sinusoids of the positions 1 to `length`, (length, width): sines, then cosines.

    Angular frequencies fall geometrically from 1 to 1e-4, both included, as in fairseq and MulT.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=device) * (-math.log(1e4) / max(1, half - 1)))
    angles = torch.arange(1, length + 1, device=device)[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width - 2 * half))


def _layer(width: int, heads: int, dropouts: Dropouts) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, norm_first=True, batch_first=True)
    # The constructor has one rate for all of these.
    layer.self_attn.dropout = dropouts.attention
    layer.dropout.p = dropouts.relu
    layer.dropout1.p = layer.dropout2.p = dropouts.residual
    for linear in (layer.self_attn.out_proj, layer.linear1, layer.linear2):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    return layer
