"""OGM against runs of the authors' code (`tests/data/trajectories/README.md`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD

from support.models import AudioVisual, ConcatFusion, SumFusion
from support.training import audio_visual, balanced, train
from support.trajectories import Trajectory

OWN_HEADS = {"audio": "fusion_module.fc_x", "visual": "fusion_module.fc_y"}
CASES: dict[str, dict[str, Any]] = {
    "normal_concat": {"method": "none"},
    "ogm_concat": {"method": "ogm", "alpha": 0.8},
    "ogm_sum": {"method": "ogm", "alpha": 0.8, "unimodal": OWN_HEADS},
    "ogm_saturated": {"method": "ogm", "alpha": 0.8},
    "ogm_outside_window": {"method": "ogm", "alpha": 0.8, "start_epoch": 5, "end_epoch": 9},
}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", CASES)
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)

    def run(nudge: int = 0) -> AudioVisual:
        model = audio_visual(SumFusion if "sum" in name else ConcatFusion)
        recorded.start(model, nudge)
        inner = SGD(model.parameters(), lr=recorded.meta.get("lr", 0.05), momentum=0.9, weight_decay=1e-4)
        optimizer = balanced(model, inner=inner, **CASES[name])
        optimizer.epoch = recorded.meta.get("epoch", 0)
        train(model, optimizer, recorded.batches(torch.float32))
        return model

    assert recorded.error(run()) <= recorded.limit(run)
