"""A small multimodal model and data for the checks: M encoders with a convolution, and a head on their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

CLASSES, FEATURES, SIDE, CHANNELS = 3, 4, 5, 3
Batch = tuple[tuple[Tensor, ...], Tensor]


class SmallModel(nn.Module):
    """Encoders ``encoders.<modality>`` of inputs (B, 1, 5, 5), and ``fusion``, from features (B, 4) each to 3 logits.

    Subclass it for a method that is made for another kind of model: override `encoder` or `head`, whose first matrix
    should have one block of columns for the features of each modality.

    Args:
        modalities: Names, in fusion order.
    """

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: self.encoder() for name in modalities})
        self.fusion: nn.Module = Concatenated(self.head(len(modalities) * FEATURES))
        self.skipped: set[str] = set()

    def encoder(self) -> nn.Module:
        """Return an encoder from (B, 1, 5, 5) to (B, 4), with parameters of four, two and one dimensions."""
        size = CHANNELS * (SIDE - 2) ** 2
        convolution = nn.Conv2d(1, CHANNELS, 3)
        return nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Dropout(0.0), nn.Linear(size, FEATURES))

    def head(self, size: int) -> nn.Module:
        """Return the layers from concatenated features (B, ``size``) to logits (B, 3)."""
        return nn.Linear(size, CLASSES)

    @property
    def paths(self) -> dict[str, str]:
        """Paths of the encoders, by modality."""
        return {name: f"encoders.{name}" for name in self.encoders}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits (B, 3); features of modalities in `skipped` are zeros, their encoders do not run."""
        features = [
            x.new_zeros(len(x), FEATURES) if name in self.skipped else self.encoders[name](x)
            for name, x in zip(list(self.encoders.keys()), inputs, strict=True)
        ]
        logits: Tensor = self.fusion(*features)
        return logits

    def reordered(self, order: Sequence[int]) -> None:
        """Put modality ``order[i]`` at place ``i`` without a change of the function: encoders, and columns of the head.

        The names of the encoders go along.
        """
        names = list(self.encoders)
        self.encoders = nn.ModuleDict({names[index]: self.encoders[names[index]] for index in order})
        weight = next(parameter for parameter in self.fusion.parameters() if parameter.dim() == 2)
        blocks = weight.detach().chunk(len(names), 1)
        weight.data = torch.cat([blocks[index] for index in order], 1)


class SharedHeadModel(SmallModel):
    """The small model with a fusion by one head for every modality, whose logits are averaged.

    For methods that declare ``shared_head`` among their `needs`.
    """

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__(modalities)
        self.fusion = Averaged(self.head(FEATURES))

    def reordered(self, order: Sequence[int]) -> None:
        """Put modality ``order[i]`` at place ``i``; the head is the same for all."""
        names = list(self.encoders)
        self.encoders = nn.ModuleDict({names[index]: self.encoders[names[index]] for index in order})


class Averaged(nn.Module):
    """Layers that receive one feature after the other, and the mean of their outputs."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, *features: Tensor) -> Tensor:
        """Return the mean of the layers' outputs for features (B, D) each."""
        out: Tensor = torch.stack([self.layers(feature) for feature in features]).mean(0)
        return out


class Concatenated(nn.Module):
    """Layers that receive the concatenation of the features."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, *features: Tensor) -> Tensor:
        """Return the layers' output for features (B, D_i) each."""
        out: Tensor = self.layers(torch.cat(features, -1))
        return out


ModelFactory = Callable[[Sequence[str]], SmallModel]


def seeded(make: ModelFactory, modalities: Sequence[str], seed: int, dtype: torch.dtype) -> SmallModel:
    """Return a model whose weights depend on ``seed`` and the number of modalities alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make(modalities).to(dtype)


def batches(modalities: int, count: int, size: int = 6, dtype: torch.dtype = torch.float32) -> list[Batch]:
    """Return synthetic batches; the first modality tells the class best, the last one least.

    The inputs of a modality depend on its number alone, and not on how many there are.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in range(modalities + 1)]
    patterns = torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(99))

    def draw() -> Batch:
        target = torch.randint(CLASSES, (size,), generator=generators[0])
        noise = [torch.randn(size, 1, SIDE, SIDE, generator=generator) for generator in generators[1:]]
        inputs = [each + patterns[target] / (index + 1) for index, each in enumerate(noise)]
        return tuple(each.to(dtype) for each in inputs), target

    return [draw() for _ in range(count)]
