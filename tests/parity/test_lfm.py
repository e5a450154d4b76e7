"""LFM against runs of the authors' code, and against a slow twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from modbalance import BalancedOptimizer
from support.models import AudioVisual, SumFusion
from support.training import train
from support.trajectories import Trajectory

OWN_HEADS = {"audio": "fusion_module.fc_x", "visual": "fusion_module.fc_y"}


@pytest.mark.parametrize("name", ["lfm_fitted", "lfm_gain", "lfm_learned"])
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    meta = recorded.meta
    model = AudioVisual(SumFusion)
    recorded.start(model)
    options: dict[str, Any] = {}
    if meta["learned"]:
        held_out = recorded.part("probe/")
        probe = [held_out[key] for key in ("audio", "visual", "target")]
        options = {"alpha": "learned", "alpha_lr": meta["lr_alpha"], "alpha_start": meta["alpha0"][1], "probe": probe}
    optimizer = BalancedOptimizer(
        SGD(model.parameters(), lr=meta["lr"], momentum=meta["momentum"], weight_decay=meta["weight_decay"]),
        "lfm",
        model=model,
        modalities={"audio": "audio_net", "visual": "visual_net"},
        fusion="fusion_module",
        unimodal=OWN_HEADS,
        **options,
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    data = [*recorded.batches(torch.float32)]
    for index, (epoch, (_, a1)) in enumerate(zip(meta["epochs_at"], meta["alpha"], strict=True)):
        optimizer.epoch = epoch
        train(model, optimizer, data, criterion)
        assert optimizer.metrics()["lfm/weight"] == pytest.approx(a1, abs=1e-6)
        if meta["learned"]:
            assert optimizer.metrics()["lfm/gradient"] == pytest.approx(meta["alpha_grad"][index], rel=1e-4)
    assert recorded.error(model) <= 1e-6
