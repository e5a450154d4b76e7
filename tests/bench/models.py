"""The four workloads of the step benchmarks: a model, its optimizer and one batch, the same every time.

| name | model | what its step spends time on |
|---|---|---|
| `mlp` | two MLPs of two layers, batch 64, 10 tensors | Python between operations |
| `vit` | two transformers of 12 blocks and width 16, batch 8, 302 tensors | launching small operations |
| `wide` | two transformers of 4 blocks and width 192, batch 16 | matrix products |
| `pair` | two ResNet-18, batch 8, with batch norm | convolutions |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from modbalance import BalancedOptimizer
from modbalance_mla import SharedHead
from recipe_common.models.clips import audio_visual_net
from support.training import head_for

CLASSES = 6

Step = Callable[[], None]


class Transformer(nn.Module):
    """A transformer without dropout over tokens (B, T, 16); returns its class token, (B, D)."""

    def __init__(self, width: int, heads: int, blocks: int, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))
        layers = (
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.position
        seen: Tensor = self.norm(self.blocks(x)[:, 0])
        return seen


class Concatenation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc_out = nn.Linear(2 * width, CLASSES)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.fc_out(torch.cat([audio, visual], -1))
        return logits


class Two(nn.Module):
    """Two encoders of one kind with a linear head over both; the names are those of the ResNet-18 pair."""

    def __init__(self, encoder: Callable[[], nn.Module], width: int) -> None:
        super().__init__()
        self.audio_net, self.visual_net = encoder(), encoder()
        self.fusion_module = Concatenation(width)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.fusion_module(self.audio_net(audio), self.visual_net(visual))
        return logits


def mlp() -> nn.Module:
    return Two(lambda: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), 32)


def vit() -> nn.Module:
    return Two(lambda: Transformer(16, 2, 12, tokens=8), 16)


def wide() -> nn.Module:
    return Two(lambda: Transformer(192, 3, 4, tokens=16), 192)


def pair() -> nn.Module:
    return audio_visual_net(CLASSES)


@attrs.frozen
class Workload:
    """A model with one batch.

    Attributes:
        build: Builds the model.
        size: Number of samples.
        shapes: Shape of one sample of audio and of visual.
        threads: Number of threads that CPU times are taken with.
    """

    build: Callable[[], nn.Module]
    size: int
    shapes: tuple[Sequence[int], Sequence[int]]
    threads: int = 1

    def model(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the model with the same weights every time."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return self.build().to(device, dtype)

    def batch(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return (audio, visual) and the classes (B,)."""
        generator = torch.Generator().manual_seed(1)
        audio, visual = (torch.randn(self.size, *shape, generator=generator).to(device, dtype) for shape in self.shapes)
        return (audio, visual), torch.randint(CLASSES, (self.size,), generator=generator).to(device)


WORKLOADS = {
    "mlp": Workload(mlp, 64, ((32,), (32,))),
    "vit": Workload(vit, 8, ((8, 16), (8, 16))),
    "wide": Workload(wide, 16, ((16, 16), (16, 16))),
    "pair": Workload(pair, 8, ((1, 257, 64), (3, 1, 64, 64)), threads=2),
}
PAPER_SIZES = attrs.evolve(WORKLOADS["pair"], size=64, shapes=((1, 257, 188), (3, 1, 224, 224)))
"""The pair at the sizes of the papers on CREMA-D, too large for a CPU."""


def fitted(model: nn.Module, method: Any) -> nn.Module:
    """Return the model, with one head for both modalities where a method needs that."""
    if head_for(method) == "shared":
        joint = next(layer for layer in model.get_submodule("fusion_module").modules() if isinstance(layer, nn.Linear))
        head = nn.Linear(joint.in_features // 2, joint.out_features, device=joint.weight.device)
        model.fusion_module = SharedHead(head)
    return model


def inner(model: nn.Module) -> Optimizer:
    """Return the optimizer that each step is measured with."""
    return SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)


def balanced(model: nn.Module, method: Any, **options: Any) -> BalancedOptimizer:
    """Return that optimizer with a method around it."""
    return BalancedOptimizer(
        inner(model),
        method,
        model=model,
        modalities={"audio": "audio_net", "visual": "visual_net"},
        fusion="fusion_module",
        **options,
    )


def bare_step(workload: Workload, device: torch.device | str = "cpu") -> Step:
    """Return a step of the inner optimizer alone."""
    model = workload.model(device)
    return training_step(model, model, inner(model), workload.batch(device))


def method_step(workload: Workload, method: Any, device: torch.device | str = "cpu", **options: Any) -> Step:
    """Return a step of a method."""
    model = fitted(workload.model(device), method)
    inputs, target = batch = workload.batch(device)
    optimizer = balanced(model, method, **options)
    optimizer.begin(train=[(*inputs, target)], val=[(*inputs, target)])
    return training_step(model, model, optimizer, batch)


def training_step(
    model: nn.Module,
    forward: Callable[..., Tensor],
    optimizer: Optimizer,
    batch: tuple[tuple[Tensor, Tensor], Tensor],
) -> Step:
    """Return one turn of the training loop; ``forward`` is the model, or a compiled form of it."""
    model.train()
    inputs, target = batch
    loss_fn = nn.CrossEntropyLoss()
    criterion = optimizer.criterion(loss_fn) if isinstance(optimizer, BalancedOptimizer) else loss_fn

    def step() -> None:
        optimizer.zero_grad()
        criterion(forward(*inputs), target).backward()
        optimizer.step()

    return step
