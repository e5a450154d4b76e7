"""Late fusion: a network of one encoder per modality, and heads on their features. B batch, D_m sizes, C outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn


class LateFusionNet(nn.Module):
    """One encoder per modality, and a module that turns their features into outputs.

    The submodules are called `<modality>_net` and `fusion_module`.

    Args:
        encoders: Encoder of each modality, in the order of the inputs.
        fusion: Module that is called with one feature per modality, in that order.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], fusion: nn.Module) -> None:
        super().__init__()
        self.modalities = tuple(encoders)
        for name, encoder in encoders.items():
            self.add_module(f"{name}_net", encoder)
        self.fusion_module = fusion

    def forward(self, *inputs: Any) -> Tensor:
        """One input per modality -> (B, C)."""
        if len(inputs) != len(self.modalities):
            raise ValueError(f"Inputs should be {', '.join(self.modalities)}. Found {len(inputs)} inputs.")
        features = [self.get_submodule(f"{name}_net")(x) for name, x in zip(self.modalities, inputs, strict=True)]
        outputs: Tensor = self.fusion_module(*features)
        return outputs


def describe(modalities: Iterable[str], fusion: str = "concat", *, part: str = "") -> dict[str, Any]:
    """Return the arguments of `BalancedOptimizer` that describe a `LateFusionNet`, with the heads that classify alone.

    Args:
        modalities: Names of the modalities.
        fusion: Key of the head in `FUSIONS`.
        part: Path inside of each encoder, such as `.encoder`, if methods do not act on all of it.
    """
    nets = {name: f"{name}_net{part}" for name in modalities}
    described: dict[str, Any] = {"modalities": nets, "fusion": "fusion_module"}
    if fusion in ("sum", "shared"):
        described["unimodal"] = {name: f"fusion_module.fc_{name if fusion == 'sum' else 'out'}" for name in nets}
    return described


class ConcatFusion(nn.Module):
    """Concatenated features into one linear layer, or into a network with one hidden layer and ReLU.

    Args:
        sizes: Feature size D_m of each modality, in order.
        outputs: Number of outputs C.
        hidden: Size of the hidden layer; None: none.
    """

    def __init__(self, sizes: Mapping[str, int], outputs: int, hidden: int | None = None) -> None:
        super().__init__()
        size = sum(sizes.values())
        self.hidden = nn.Sequential() if hidden is None else nn.Sequential(nn.Linear(size, hidden), nn.ReLU())
        self.fc_out = nn.Linear(hidden or size, outputs)

    def forward(self, *features: Tensor) -> Tensor:
        """One (B, D_m) per modality -> (B, C)."""
        logits: Tensor = self.fc_out(self.hidden(torch.cat(features, dim=1)))
        return logits


class SumFusion(nn.Module):
    """One linear layer `fc_<modality>` per modality; their outputs are added.

    Args:
        sizes: Feature size D_m of each modality, in order.
        outputs: Number of outputs C.
    """

    def __init__(self, sizes: Mapping[str, int], outputs: int) -> None:
        super().__init__()
        self.modalities = tuple(sizes)
        for name, size in sizes.items():
            self.add_module(f"fc_{name}", nn.Linear(size, outputs))

    def forward(self, *features: Tensor) -> Tensor:
        """One (B, D_m) per modality -> (B, C)."""
        parts = (self.get_submodule(f"fc_{name}")(z) for name, z in zip(self.modalities, features, strict=True))
        return reduce(torch.add, parts)


class SharedFusion(nn.Module):
    """One linear layer that classifies each feature alone; its outputs are averaged (arXiv 2311.10707).

    Args:
        sizes: Feature size D of each modality, in order, all equal.
        outputs: Number of outputs C.
    """

    def __init__(self, sizes: Mapping[str, int], outputs: int) -> None:
        super().__init__()
        (size,) = set(sizes.values())
        self.fc_out = nn.Linear(size, outputs)

    def forward(self, *features: Tensor) -> Tensor:
        """One (B, D) per modality -> (B, C)."""
        return reduce(torch.add, (self.fc_out(z) for z in features)) / len(features)


class FiLMFusion(nn.Module):
    """FiLM: the first of two features scales and shifts the second (Perez et al., AAAI 2018)."""

    def __init__(self, sizes: Mapping[str, int], outputs: int) -> None:
        super().__init__()
        first, second = sizes.values()
        self.fc_film = nn.Linear(first, 2 * second)
        self.fc_out = nn.Linear(second, outputs)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, D_1), (B, D_2) -> (B, C)."""
        gamma, beta = self.fc_film(first).chunk(2, dim=1)
        logits: Tensor = self.fc_out(gamma * second + beta)
        return logits


class GatedFusion(nn.Module):
    """Gated fusion: the first of two features weighs the second, from 0 to 1 (Kiela et al., AAAI 2018)."""

    def __init__(self, sizes: Mapping[str, int], outputs: int) -> None:
        super().__init__()
        first, second = sizes.values()
        self.fc_gate = nn.Linear(first, second)
        self.fc_value = nn.Linear(second, second)
        self.fc_out = nn.Linear(second, outputs)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, D_1), (B, D_2) -> (B, C)."""
        gate = torch.sigmoid(self.fc_gate(first))
        logits: Tensor = self.fc_out(gate * self.fc_value(second))
        return logits


FUSIONS: dict[str, Callable[[Mapping[str, int], int], nn.Module]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "shared": SharedFusion,
    "film": FiLMFusion,
    "gated": GatedFusion,
}
