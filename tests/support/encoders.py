"""Encoders of inputs (B, 5) whose passes in training and in evaluation differ, each in its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from support.models import Multimodal


class Tokens(nn.Module):
    """Takes the five numbers of a sample for a sequence, through one transformer layer with dropout."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, size)
        self.layer = nn.TransformerEncoderLayer(size, 2, 2 * size, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embed(x.unsqueeze(-1))).mean(1)


def normed(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, size))


def dropping(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, size), nn.Dropout(0.3), nn.Tanh(), nn.Linear(size, size))


def layer_normed(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, size), nn.LayerNorm(size), nn.Tanh(), nn.Linear(size, size))


ENCODERS: dict[str, Callable[[int], nn.Module]] = {
    "batch norm": normed,
    "dropout": dropping,
    "layer norm": layer_normed,
    "transformer": Tokens,
}


def mixed(
    names: Sequence[str], kinds: Sequence[str], head: str = "concat", seed: int = 0, dtype: torch.dtype = torch.float64
) -> Multimodal:
    """Return a model whose encoders are of the given kinds, with weights that depend on ``seed`` alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = Multimodal(names, head)
        for name, kind in zip(names, kinds, strict=False):
            model.encoders[name] = ENCODERS[kind](4)
        return model.to(dtype)
