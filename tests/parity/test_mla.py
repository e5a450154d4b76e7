"""MLA against runs of the authors' code, and against a slow twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer
from support.models import AudioVisual, SharedFusion
from support.reference import mla
from support.training import train
from support.trajectories import Trajectory

NAMES = ["mla_released", "mla_projected", "mla_three"]
SIZES = {"audio": 4, "visual": 5, "text": 6}


class Three(nn.Module):
    """Three series, each averaged over time, and one head."""

    def __init__(self) -> None:
        super().__init__()
        for name, size in SIZES.items():
            layers = nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()
            setattr(self, f"{name}_net", nn.Sequential(*layers))
        self.fusion_module = SharedFusion(8, 4)

    def features(self, *inputs: Tensor) -> list[Tensor]:
        return [self.get_submodule(f"{name}_net")(x.mean(1)) for name, x in zip(SIZES, inputs, strict=True)]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.fusion_module(*self.features(*inputs))


def model_of(recorded: Trajectory) -> Any:
    model = Three() if len(recorded.meta["order"]) == 3 else AudioVisual(lambda: SharedFusion(8, 6))
    recorded.start(model)
    return model


def inner_of(model: nn.Module, meta: dict[str, Any]) -> SGD:
    return SGD(model.parameters(), lr=meta["lr"], momentum=meta["momentum"], weight_decay=meta["weight_decay"])


def options_of(meta: dict[str, Any]) -> dict[str, Any]:
    if meta["version"] == "head":
        return {"idle": meta["idle"]}
    return {"idle": meta["idle"], "projection": "elementwise", "steps_per_epoch": meta["steps"]}


def audio_visual_features(model: AudioVisual) -> Any:
    def features(audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [model.audio_net(audio.unsqueeze(1)).mean((2, 3)), model.visual_net(visual).mean((1, 3, 4))]

    return features


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_follows_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    model = model_of(recorded)
    head = model.fusion_module.fc_out
    features = model.features if isinstance(model, Three) else audio_visual_features(model)
    twin = mla.Twin(
        features=features, head=head, last=head, inner=inner_of(model, recorded.meta), **options_of(recorded.meta)
    )
    data = [*recorded.batches(torch.float32, tuple(recorded.meta["order"]))]
    for _ in range(recorded.meta["epochs"]):
        twin.index = 0
        for batch in data:
            twin.step(*batch)
    assert recorded.error(model) <= 1e-6
    assert twin.calls == recorded.meta["exp_count"]


def balanced_run(model: Any, meta: dict[str, Any], **options: Any) -> BalancedOptimizer:
    return BalancedOptimizer(
        inner_of(model, meta),
        "mla",
        model=model,
        modalities={name: f"{name}_net" for name in meta["order"]},
        fusion="fusion_module",
        **options_of(meta),
        **options,
    )


@pytest.mark.parametrize("name", NAMES)
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    meta = recorded.meta
    model = model_of(recorded)
    optimizer = balanced_run(model, meta)
    data = [*recorded.batches(torch.float32, tuple(meta["order"]))]
    for _ in range(meta["epochs"]):
        train(model, optimizer, data)
        optimizer.end_epoch()
    assert recorded.error(model) <= 1e-6
    state = optimizer.state_dict()["modbalance"]["methods"]["mla"]
    assert state["calls"] == meta["exp_count"]
    for key, expected in recorded.part("projection_final").items():
        assert key == ""
        torch.testing.assert_close(state["P"], expected, atol=1e-6, rtol=1e-6)
