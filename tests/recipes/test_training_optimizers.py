"""The inner optimizer and its schedule are those that the flags name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from recipe_common.errors import RecipeError
from recipe_common.settings.shared import OptimisationSettings
from recipe_common.tasks.task import ACCURACY, Metric
from recipe_common.training.optimizers import Schedule, build_inner


def settings(**changes: Any) -> OptimisationSettings:
    return OptimisationSettings(**{"lr": 0.1, "epochs": 4, **changes})


def rates(
    settings: OptimisationSettings, scores: list[float], *, metric: Metric = ACCURACY, steps: int = 2
) -> list[float]:
    """Return the learning rate of every step of one epoch per score."""
    optimizer = build_inner(settings, [nn.Parameter(torch.zeros(1))])
    schedule = Schedule(settings, optimizer, metric, steps)
    seen = []
    for score in scores:
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch(score)
    return seen


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_optimizer_is_the_named_one(name: str, kind: type) -> None:
    optimizer = build_inner(settings(optimizer=name, weight_decay=0.3), [nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_step_and_multistep_cut_after_epochs() -> None:
    assert rates(settings(schedule="step", step_size=2), [0.0] * 3) == pytest.approx([0.1] * 4 + [0.01] * 2)
    cut = rates(settings(schedule="multistep", milestones=(1, 2)), [0.0] * 3)
    assert cut == pytest.approx([0.1] * 2 + [0.01] * 2 + [0.001] * 2)


def test_constant_stays() -> None:
    assert rates(settings(schedule="constant"), [0.0] * 3) == [0.1] * 6


def test_plateau_watches_the_headline_in_its_direction() -> None:
    chosen = settings(schedule="plateau", patience=0)
    assert rates(chosen, [0.5, 0.6, 0.6, 0.7], steps=1) == pytest.approx([0.1, 0.1, 0.1, 0.01])
    error = Metric("mae", "MAE", percent=False, higher_is_better=False)
    assert rates(chosen, [0.5, 0.4, 0.4, 0.3], metric=error, steps=1) == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_a_plateau_needs_a_factor_below_one() -> None:
    with pytest.raises(RecipeError, match="`--gamma` should be below 1"):
        rates(settings(schedule="plateau", gamma=1.0), [0.5])


def test_cosine_rises_and_falls_by_step() -> None:
    chosen = settings(schedule="cosine", warmup_epochs=1, warmup_lr=0.02, final_lr=0.01, epochs=3)
    seen = rates(chosen, [0.0] * 3)
    assert seen[:3] == pytest.approx([0.02, 0.06, 0.1])
    falling = [0.01 + 0.09 * (1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    assert seen[2:] == pytest.approx(falling)


@pytest.mark.parametrize("schedule", ["step", "plateau", "cosine", "constant"])
def test_a_schedule_goes_on_from_its_state(schedule: str) -> None:
    chosen = settings(schedule=schedule, step_size=1, patience=0, warmup_epochs=1)
    whole = rates(chosen, [0.0] * 4, steps=1)
    optimizer = build_inner(chosen, [nn.Parameter(torch.zeros(1))])
    first = Schedule(chosen, optimizer, ACCURACY, 1)
    seen = []
    for epoch in range(4):
        if epoch == 2:
            state, rate = first.state_dict(), optimizer.param_groups[0]["lr"]
            optimizer = build_inner(chosen, [nn.Parameter(torch.zeros(1))])
            first = Schedule(chosen, optimizer, ACCURACY, 1)
            first.load_state_dict(state)
            optimizer.param_groups[0]["lr"] = rate
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        first.after_step()
        first.after_epoch(0.0)
    assert seen == whole
