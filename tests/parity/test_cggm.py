"""CGGM against runs of the authors' code (`tests/data/trajectories/README.md`)."""

from __future__ import annotations

import pytest
from torch import nn

from modbalance import BalancedOptimizer
from support.time_series import NAMES, TimeSeries, optimizers_of, probe_error, probes_of, series
from support.trajectories import Trajectory


@pytest.mark.filterwarnings("ignore:.*almost no effect")
@pytest.mark.parametrize("name", ["cggm", "cggm_adam", "cggm_no_direction"])
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    model, probes = TimeSeries(), probes_of(recorded)
    recorded.start(model)
    make_main, make_probe_optimizer = optimizers_of(recorded.meta)
    optimizer = BalancedOptimizer(
        make_main(model.parameters()),
        "cggm",
        model=model,
        modalities={modality: f"encoders.{index}" for index, modality in enumerate(NAMES)},
        fusion=["fusion", "out_layer"],
        feature_sizes=[8, 8, 8],
        rho=recorded.meta["rou"],
        lam=recorded.meta["lamda"],
        probes=probes,
        probe_optimizer=make_probe_optimizer,
        clip_grad_norm=0.8,
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for inputs, target in series(recorded):
        optimizer.zero_grad()
        criterion(model(*inputs), target).backward()
        optimizer.step()

    assert recorded.error(model) <= 1e-6
    assert probe_error(recorded, probes) <= 1e-6
