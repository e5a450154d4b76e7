"""A checkpoint of the commit before the restructuring loads, and the training goes on bitwise."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from compat.equality import assert_as_recorded, assert_equal
from compat.scenarios import DATA, END, METHODS, REORDERED, SAVED, Training
from modbalance import list_methods

each_method = pytest.mark.parametrize("method", METHODS)


def _recorded(method: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(DATA / "checkpoints" / f"{method}.pt", weights_only=True)
    return found


def _end(training: Training) -> dict[str, Any]:
    return {**training.state_dict(), "metrics": training.optimizer.metrics()}


def test_every_built_in_method_was_recorded() -> None:
    assert {each.name for each in list_methods() if each.method is not None} | {"none"} == set(METHODS)


@each_method
def test_a_loaded_checkpoint_is_saved_as_it_was(method: str) -> None:
    checkpoint = _recorded(method)["checkpoint"]
    training = Training(method)
    training.load_state_dict(checkpoint)
    assert_equal(training.state_dict(), checkpoint)


@each_method
def test_a_recorded_training_goes_on_bitwise(method: str) -> None:
    recorded = _recorded(method)
    training = Training(method)
    training.load_state_dict(recorded["checkpoint"])
    training.run(SAVED, END)
    assert_as_recorded(_end(training), recorded["end"], reordered=method in REORDERED)


@each_method
def test_an_uninterrupted_training_passes_through_the_recorded_states(method: str) -> None:
    recorded = _recorded(method)
    training = Training(method)
    training.run(0, SAVED)
    assert_as_recorded(training.state_dict(), recorded["checkpoint"], reordered=method in REORDERED)
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    training.run(SAVED, END)
    assert_as_recorded(_end(training), recorded["end"], reordered=method in REORDERED)

    file.seek(0)
    resumed = Training(method)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.run(SAVED, END)
    assert_equal(_end(resumed), _end(training))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_every_method_acted_before_and_after_the_checkpoint(method: str) -> None:
    without, with_method = _recorded("none"), _recorded(method)
    weights = ["audio_net.0.weight", "visual_net.0.weight"]
    for state, other in (
        (without["checkpoint"], with_method["checkpoint"]),
        (without["end"], with_method["end"]),
    ):
        assert any(not torch.equal(state["model"][name], other["model"][name]) for name in weights)
    assert with_method["end"]["metrics"]
