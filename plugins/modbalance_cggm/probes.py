"""The built-in probes: classifiers of one modality's feature."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("linear", "mlp", "transformer")


class Probe(nn.Module):
    """A classifier of one feature, (B, D), tokens (B, T, D) or a map (B, D, H, W), to logits of a given shape.

    Where the logits are vectors, "linear" and "mlp" see the mean over tokens or space, and "transformer" answers at
    token 0; where they are maps, each position answers, and the answers are interpolated to the size of the logits.

    Args:
        kind: "linear"; "mlp": one hidden layer; "transformer": two pre-norm layers, then one layer applied twice.
        size: D.
        width: Columns of the last layer's weight.
        outputs: C, its rows.
        channels_last: Whether D is the last dimension of maps too.
    """

    def __init__(self, kind: str, size: int, width: int, outputs: int, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.body: nn.Module = nn.Identity()
        if kind == "mlp":
            self.body = nn.Sequential(nn.Linear(size, width), nn.ReLU())
        elif kind == "transformer":
            self.body = TokenEncoder(size, width)
        self.out_layer = nn.Linear(size if kind == "linear" else width, outputs)

    def forward(self, feature: Tensor, like: Tensor) -> Tensor:
        """Return logits of the shape of ``like``."""
        maps = feature if self.channels_last or feature.dim() <= 3 else feature.movedim(1, -1)
        tokens = maps.flatten(1, -2) if maps.dim() > 2 else maps.unsqueeze(1)
        if like.dim() <= 2:
            tokens = tokens if isinstance(self.body, TokenEncoder) else tokens.mean(1, keepdim=True)
            return self.out_layer(self.body(tokens)[:, 0]).reshape(like.shape)
        logits = self.out_layer(self.body(tokens)).unflatten(1, maps.shape[1:-1]).movedim(-1, 1)
        mode = ("linear", "bilinear", "trilinear")[like.dim() - 3]
        return F.interpolate(logits, like.shape[2:], mode=mode, align_corners=False)


class TokenEncoder(nn.Module):
    """The paper's probe on tokens, (B, T, D) -> (B, T, K): positions, two pre-norm layers, x -> relu(P P x)."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.project = nn.Identity() if size == width else nn.Linear(size, width)
        heads = next(n for n in (5, 4, 3, 2, 1) if width % n == 0)
        layers = [
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, batch_first=True, norm_first=True) for _ in "12"
        ]
        self.layers = nn.Sequential(*layers, nn.LayerNorm(width))
        self.proj1 = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return encoded tokens."""
        x = self.project(tokens)
        x = self.layers(math.sqrt(x.shape[-1]) * x + _positions(x))
        return F.relu(self.proj1(self.proj1(x)))


def _positions(tokens: Tensor) -> Tensor:
    """Return sinusoidal positions, (T, K)."""
    length, width = tokens.shape[1:]
    half = torch.arange((width + 1) // 2, device=tokens.device, dtype=tokens.dtype)
    rate = torch.exp(half * (-2 * math.log(1e4) / width))
    angle = torch.arange(length, device=tokens.device, dtype=tokens.dtype)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width]
