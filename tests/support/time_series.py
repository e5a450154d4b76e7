"""The model of the recorded CGGM runs: three time series, a fusion of two layers, and its probes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from support.trajectories import Trajectory

NAMES = ("text", "audio", "vision")


class TimeSeries(nn.Module):
    """Text (B, T, 5), audio (B, T, 7), vision (B, T, 3) -> logits (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, 8)) for size in (5, 7, 3)
        )
        self.fusion = nn.Sequential(nn.Linear(24, 8), nn.ReLU())
        self.out_layer = nn.Linear(8, 4)

    def forward(self, *inputs: Tensor) -> Tensor:
        features = [encoder(x).mean(1) for encoder, x in zip(self.encoders, inputs, strict=True)]
        return self.out_layer(self.fusion(torch.cat(features, -1)))


class SeriesProbe(nn.Module):
    def __init__(self, size: int = 8, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.proj1 = nn.Linear(size, width)
        self.out_layer = nn.Linear(width, classes)

    def forward(self, feature: Tensor) -> Tensor:
        return self.out_layer(self.proj1(feature).relu())


def probes_of(recorded: Trajectory) -> dict[str, nn.Module]:
    """Return the probes that the run began with."""
    probes = nn.ModuleDict({"classifers": nn.ModuleList(SeriesProbe() for _ in NAMES)})
    probes.load_state_dict(recorded.part("probe_init/"))
    classifiers: Any = probes["classifers"]
    return dict(zip(NAMES, classifiers, strict=True))


def probe_error(recorded: Trajectory, probes: dict[str, nn.Module]) -> float:
    final = recorded.part("probe_final/")
    ours = {
        f"classifers.{i}.{key}": value
        for i, probe in enumerate(probes.values())
        for key, value in probe.state_dict().items()
    }
    assert ours.keys() == final.keys()
    return max(float((ours[key] - final[key]).abs().max()) for key in final)


def optimizers_of(meta: dict[str, Any]) -> tuple[Any, Any]:
    """Return what makes the main optimizer and that of the probes."""
    if meta.get("optim") == "Adam":
        return (lambda parameters: Adam(parameters, lr=meta["lr"])), lambda parameters: Adam(parameters, meta["cls_lr"])
    return (lambda parameters: SGD(parameters, lr=0.05)), (lambda parameters: SGD(parameters, lr=0.05))


def series(recorded: Trajectory) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Return the batches, labels (B,)."""
    part = recorded.part("batch/")
    count = len({key.split("/")[0] for key in part})
    return [(tuple(part[f"{i}/{name}"] for name in NAMES), part[f"{i}/labels"].squeeze(1)) for i in range(count)]
