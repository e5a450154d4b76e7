"""MaxOut network on concatenated features, as in Li et al. (ICCV 2023). B batch, C classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Maxout(nn.Module):
    """MaxOut layer: the maximum of several linear layers, unit by unit (Goodfellow et al., ICML 2013).

    Args:
        in_size: Input size.
        out_size: Output size.
        pieces: Linear layers per output.
    """

    def __init__(self, in_size: int, out_size: int, pieces: int = 2) -> None:
        super().__init__()
        self.pieces = pieces
        self.linear = nn.Linear(in_size, out_size * pieces)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_size) -> (B, out_size)."""
        return self.linear(x).unflatten(-1, (-1, self.pieces)).amax(dim=-1)


class MaxoutFusion(nn.Module):
    """Concatenated features into a MaxOut network: "early fusion" in the code of Li et al. (ICCV 2023).

    Args:
        sizes: Feature size of each modality, in order.
        num_classes: Number of classes C.
        hidden: Sizes of the MaxOut layers; each is followed by batch norm and dropout.
        pieces: Linear layers per MaxOut unit.
        dropout: Dropout rate, 0 to 1.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        num_classes: int,
        hidden: Sequence[int] = (2048, 1024),
        *,
        pieces: int = 2,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        in_size = sum(sizes.values())
        layers: list[nn.Module] = [nn.BatchNorm1d(in_size, eps=1e-4)]
        for before, after in pairwise((in_size, *hidden)):
            layers += [Maxout(before, after, pieces), nn.BatchNorm1d(after), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.fc_out = nn.Linear(hidden[-1], num_classes)

    def forward(self, *features: Tensor) -> Tensor:
        """One (B, size) per modality -> (B, C)."""
        logits: Tensor = self.fc_out(self.layers(torch.cat(features, dim=1)))
        return logits
