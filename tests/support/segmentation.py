"""A segmentation model: any number of maps, (B, 2, 6, 6) each, to logits (B, 4, 6, 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from support.training import Batch


class ConcatMaps(nn.Module):
    """A 1x1 convolution on the concatenated maps, interpolated by 2."""

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.out = nn.Conv2d(3 * modalities, 4, 1)

    def forward(self, *features: Tensor) -> Tensor:
        return nn.functional.interpolate(self.out(torch.cat(features, 1)), scale_factor=2.0, mode="bilinear")


class Segmenter(nn.Module):
    """Convolutional encoders `encoders.<name>` with features (B, 3, 3, 3), and `fusion`."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Conv2d(2, 3, 3, stride=2, padding=1) for name in names})
        self.fusion = ConcatMaps(len(names))

    @property
    def paths(self) -> dict[str, str]:
        return {name: f"encoders.{name}" for name in self.encoders}

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.fusion(*[encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True)])


def map_batches(names: Sequence[str], count: int, dtype: torch.dtype = torch.float64) -> list[Batch]:
    """Return batches of three samples."""
    generator = torch.Generator().manual_seed(3)
    return [
        (
            tuple(torch.randn(3, 2, 6, 6, generator=generator).to(dtype) for _ in names),
            torch.randint(4, (3, 6, 6), generator=generator),
        )
        for _ in range(count)
    ]
