"""Encoders of feature sequences that answer with one feature, and heads for any number of them.

B batch, T time steps and D features of one modality, C outputs. Steps whose features are all 0 are padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.models.heads import check_width

STEPS = ("first", "last")


class SequenceNet(nn.Module):
    """One encoder per modality and a fusion module on their features.

    The encoders are `<modality>_net`, the fusion is `fusion_module`.

    Args:
        encoders: By modality, in the order in which modalities are passed: (B, T, D) -> (B, width).
        fusion: From one feature (B, width) per modality to outputs (B, C).
    """

    def __init__(self, encoders: Mapping[str, nn.Module], fusion: nn.Module) -> None:
        super().__init__()
        self.modalities = tuple(encoders)
        for modality, encoder in encoders.items():
            self.add_module(f"{modality}_net", encoder)
        self.fusion_module = fusion

    def forward(self, *inputs: Tensor) -> Tensor:
        """One sequence per modality to outputs (B, C)."""
        features = [
            self.get_submodule(f"{modality}_net")(sequence)
            for modality, sequence in zip(self.modalities, inputs, strict=True)
        ]
        outputs: Tensor = self.fusion_module(*features)
        return outputs


class TransformerEncoder(nn.Module):
    """Projects every step, encodes the sequence and answers with one of its steps, (B, T, D) -> (B, width).

    As in MultiBench (Liang et al., NeurIPS 2021), AGM (Li et al., ICCV 2023) and BalanceBenchmark: a projection without
    bias, torch's post-norm layers with feed-forward width 2048, dropout 0.1 and ReLU, and no positions. The layers
    start as copies of one another.

    Args:
        size: Features D.
        width: Width of the encoder; a multiple of `heads`.
        heads: Attention heads.
        layers: Layers.
        step: Which step answers, one of `STEPS`.
        mask: Whether nobody attends to padding, and `step` counts real steps only; the authors do neither. A sequence
            that is all 0, as where a modality is masked, is taken as it is.

    Raises:
        RecipeError: If `width` is no multiple of `heads`.
    """

    def __init__(
        self, size: int, width: int, heads: int, layers: int, *, step: str = "first", mask: bool = True
    ) -> None:
        super().__init__()
        if step not in STEPS:
            raise ValueError(f"`step` should be one of {', '.join(STEPS)}. Found `step = {step!r}`.")
        check_width(width, heads)
        self.step, self.mask = step, mask
        self.conv = nn.Conv1d(size, width, kernel_size=1, bias=False)
        layer = nn.TransformerEncoderLayer(width, heads, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, T, D) -> (B, width)."""
        is_padding = padding(sequence) if self.mask else None
        steps = self.conv(sequence.transpose(1, 2)).transpose(1, 2)
        return one_step(self.transformer(steps, src_key_padding_mask=is_padding), self.step, is_padding)


class GRUEncoder(nn.Module):
    """A GRU whose state after the last step is the feature, (B, T, D) -> (B, width), as in MultiBench.

    Args:
        size: Features D.
        width: Width of the state.
        dropout: Of the feature, 0 to 1.
        mask: Whether the last real step counts instead of the last one.
    """

    def __init__(self, size: int, width: int, *, dropout: float = 0.1, mask: bool = True) -> None:
        super().__init__()
        self.mask = mask
        self.gru = nn.GRU(size, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, T, D) -> (B, width)."""
        states, _ = self.gru(sequence)
        feature: Tensor = self.dropout(one_step(states, "last", padding(sequence) if self.mask else None))
        return feature


class ConcatHead(nn.Module):
    """All features side by side into one linear layer, or into a network with one hidden layer and ReLU.

    Args:
        in_size: Sizes of all features together.
        outputs: Number of outputs C.
        hidden: Size of the hidden layer; None: none.
    """

    def __init__(self, in_size: int, outputs: int, hidden: int | None = None) -> None:
        super().__init__()
        self.hidden = nn.Sequential() if hidden is None else nn.Sequential(nn.Linear(in_size, hidden), nn.ReLU())
        self.fc_out = nn.Linear(hidden or in_size, outputs)

    def forward(self, *features: Tensor) -> Tensor:
        """One (B, width) per modality -> (B, C)."""
        outputs: Tensor = self.fc_out(self.hidden(torch.cat(features, dim=1)))
        return outputs


class SumHead(nn.Module):
    """One linear layer `fc_<modality>` per modality; their outputs are added.

    Args:
        sizes: Size of each feature by modality, in order.
        outputs: Number of outputs C.
    """

    def __init__(self, sizes: Mapping[str, int], outputs: int) -> None:
        super().__init__()
        self.modalities = tuple(sizes)
        for modality, size in sizes.items():
            self.add_module(f"fc_{modality}", nn.Linear(size, outputs))

    def forward(self, *features: Tensor) -> Tensor:
        """One (B, width) per modality -> (B, C)."""
        parts = [
            self.get_submodule(f"fc_{modality}")(feature)
            for modality, feature in zip(self.modalities, features, strict=True)
        ]
        return torch.stack(parts).sum(dim=0)


def padding(sequence: Tensor) -> Tensor:
    """Tell which steps of (B, T, D) are padding, (B, T); of a sequence that is all 0 none is.

    Attention to no step at all would be NaN, and methods and evaluations feed zeros in place of a modality.
    """
    is_zero = (sequence == 0).all(dim=2)
    return is_zero & ~is_zero.all(dim=1, keepdim=True)


def one_step(steps: Tensor, which: str, is_padding: Tensor | None) -> Tensor:
    """Return the first or last step of (B, T, width) that is no padding, (B, width)."""
    if is_padding is None:
        return steps[:, 0 if which == "first" else -1]
    real = (~is_padding).int()
    index = real.argmax(dim=1) if which == "first" else real.shape[1] - 1 - real.flip(1).argmax(dim=1)
    return steps.gather(1, index[:, None, None].expand(-1, 1, steps.shape[2])).squeeze(1)
