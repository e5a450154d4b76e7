"""Late fusion of averaged features and an LSTM, as MMSA (Yu et al., ACL 2020) trains it on CH-SIMS.

B batch, T time steps and D features of one modality. Steps whose features are all 0 are padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recipe_common.models.sequence import one_step, padding


class MeanEncoder(nn.Module):
    """Mean over time, batch norm, dropout and three linear layers with ReLU, (B, T, D) -> (B, width).

    Source: `SubNet` of the code of MMSA, on features that its loader has averaged over all steps.

    Args:
        size: Number of features D.
        width: Width of all layers.
        dropout: Dropout rate, 0 to 1.
        mask: Whether the mean is that of the steps that are no padding.
    """

    def __init__(self, size: int, width: int, dropout: float, *, mask: bool = True) -> None:
        super().__init__()
        self.mask = mask
        self.norm = nn.BatchNorm1d(size)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(layer for first in (size, width, width) for layer in (nn.Linear(first, width), nn.ReLU()))
        )

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, T, D) -> (B, width)."""
        if self.mask:
            is_real = ~padding(sequence)[..., None]
            mean = (sequence * is_real).sum(dim=1) / is_real.sum(dim=1)
        else:
            mean = sequence.mean(dim=1)
        feature: Tensor = self.layers(self.dropout(self.norm(mean)))
        return feature


class LSTMEncoder(nn.Module):
    """State of an LSTM after the last step, dropout and a linear layer, (B, T, D) -> (B, width).

    Source: `TextSubNet` of the code of MMSA.

    Args:
        size: Number of features D.
        hidden: Width of the state.
        width: Width of the result.
        dropout: Dropout rate, 0 to 1.
        mask: Whether the last step is the last one that is no padding.
    """

    def __init__(self, size: int, hidden: int, width: int, dropout: float, *, mask: bool = True) -> None:
        super().__init__()
        self.mask = mask
        self.lstm = nn.LSTM(size, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, width)

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, T, D) -> (B, width)."""
        states, _ = self.lstm(sequence)
        last = one_step(states, "last", padding(sequence) if self.mask else None)
        feature: Tensor = self.linear(self.dropout(last))
        return feature


class DNNFusion(nn.Module):
    """Concatenated features through dropout and two hidden layers with ReLU to outputs (B, C).

    Source: the layers behind the concatenation in `LF_DNN` of the code of MMSA.

    Args:
        sizes: Feature size D_m of each modality, in order.
        outputs: Number of outputs C.
        hidden: Width of both hidden layers.
        dropout: Dropout rate, 0 to 1.
    """

    def __init__(self, sizes: Mapping[str, int], outputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(sum(sizes.values()), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )

    def forward(self, *features: Tensor) -> Tensor:
        """One feature (B, D_m) per modality -> (B, C)."""
        outputs: Tensor = self.layers(torch.cat(features, dim=1))
        return outputs
