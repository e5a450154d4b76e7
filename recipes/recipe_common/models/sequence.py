"""Encoders of feature sequences to one feature vector: transformer and GRU.

B batch, T time steps and D features of one modality. Steps whose features are all 0 are padding.
"""

from __future__ import annotations

from torch import Tensor, nn

from recipe_common.models.heads import check_width

STEPS = ("first", "last")


class TransformerEncoder(nn.Module):
    """Projects every step, encodes the sequence and returns one of its steps, (B, T, D) -> (B, width).

    As in MultiBench (Liang et al., NeurIPS 2021), Li et al. (ICCV 2023) and BalanceBenchmark: a projection without
    bias, torch's post-norm layers with feed-forward width 2048, dropout 0.1 and ReLU, and no positions. The initial
    layers are copies of one another.

    Args:
        size: Number of features D.
        width: Width of the encoder; a multiple of `heads`.
        heads: Number of attention heads.
        layers: Number of layers.
        step: Step that is returned, one of `STEPS`.
        mask: Whether padding is left out of attention and of the choice of `step`; in the authors' code it is not. A
            sequence that is all 0, as that of a masked modality, has no padding.

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
        size: Number of features D.
        width: Width of the state.
        dropout: Dropout rate of the feature, 0 to 1.
        mask: Whether the state after the last step that is no padding is returned, instead of the last one.
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


def padding(sequence: Tensor) -> Tensor:
    """Return a mask (B, T) of the steps of (B, T, D) that are padding; in a sequence that is all 0 none is.

    Attention to no step at all would be NaN, and methods and evaluations replace a modality by zeros.
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
