"""Encoders of feature sequences that answer with one feature.

B batch, T time steps and D features of one modality. Steps whose features are all 0 are padding.
"""

from __future__ import annotations

from torch import Tensor, nn

from recipe_common.models.heads import check_width

STEPS = ("first", "last")


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
