"""MSES: when a modality stops, its rewinds, its state."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from modbalance import BalancedOptimizer, CheckpointError
from support.modality_results import end, moved, stopped
from support.optimizers import assert_same_state, inner_of, wrap
from support.training import assert_same, audio_visual, balanced, batches, multimodal, train, weights

LOSS = nn.CrossEntropyLoss()


def test_patience_is_strict_and_the_best_first_epoch_counts() -> None:
    optimizer = balanced(multimodal(), "mses", patience=2)
    for worse in (1.0, 2.0, 2.0):
        end(optimizer, worse, 1.0 / worse)
        assert optimizer._lifecycle.methods[0].ratio == {"a": 1, "b": 1}  # type: ignore[attr-defined]
    end(optimizer, 2.0, 0.1)
    assert optimizer._lifecycle.methods[0].ratio == {"a": 0, "b": 1}  # type: ignore[attr-defined]


def test_smoothing_takes_the_raw_loss_before() -> None:
    optimizer = balanced(multimodal(), "mses")
    for loss in (1.0, 0.5, 0.1):
        end(optimizer, loss, loss)
    assert optimizer.metrics()["mses/best_loss/a"] == pytest.approx(0.6 * 0.5 + 0.4 * 0.1)


def test_an_equal_loss_is_no_improvement() -> None:
    optimizer = balanced(multimodal(), "mses", patience=0, rewind="none")
    end(optimizer, 1.0, 1.0)
    end(optimizer, 1.0, 0.5)
    assert optimizer._lifecycle.methods[0].ratio == {"a": 0, "b": 1}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("freeze", "expected"), [("official", {"a", "b", "fusion"}), ("hard", {"b", "fusion"})])
def test_momentum_and_decay_move_a_stopped_modality_unless_frozen_hard(freeze: str, expected: set[str]) -> None:
    model = multimodal()
    optimizer = balanced(model, "mses", patience=0, rewind="none", freeze=freeze)
    train(model, optimizer, batches(model, 2))
    end(optimizer, 1.0, 1.0)
    end(optimizer, 2.0, 0.5)
    before = weights(model)
    train(model, optimizer, batches(model, 1, seed=4))
    assert moved(model, before) == expected
    assert optimizer.metrics()["mses/coefficient/a"] == 0


def test_frozen_hard_with_gradients_that_are_zeroed_in_place() -> None:
    model = multimodal()
    optimizer = stopped(model, 1, 0, freeze="hard", rewind="none")
    criterion, before = optimizer.criterion(LOSS), weights(model)
    for inputs, target in batches(model, 3):
        optimizer.zero_grad(set_to_none=False)
        criterion(model(*inputs), target).backward()
        optimizer.step()
    assert moved(model, before) == {"b", "fusion"}


def trained_until_a_stops(rewind: str, inner: str = "SGD") -> tuple[Any, BalancedOptimizer, Any, Any]:
    """Return the model when a stops in epoch 3, and copies of model and inner state at its best epoch, 1."""
    model = audio_visual()
    optimizer = wrap(model, inner, "mses", patience=1, rewind=rewind)
    criterion = optimizer.criterion(LOSS)
    kept: Any = None
    for epoch, (batch, a) in enumerate(zip(batches(model, 4), (1.0, 0.5, 2.0, 2.0), strict=True)):
        train(model, optimizer, [batch], criterion)
        if epoch == 3:
            before_stop = copy.deepcopy((weights(model), inner_of(optimizer).state_dict()))
        end(optimizer, a, 1.0 / (epoch + 1))
        if epoch == 1:
            kept = copy.deepcopy((weights(model), inner_of(optimizer).state_dict()))
    return model, optimizer, kept, before_stop


@pytest.mark.parametrize("inner", ["SGD", "Adam"])
def test_rewind_of_everything(inner: str) -> None:
    model, optimizer, (best_weights, best_state), _ = trained_until_a_stops("all", inner)
    assert_same(weights(model), best_weights)
    assert_same_state(inner_of(optimizer).state_dict(), best_state)


@pytest.mark.parametrize("inner", ["SGD", "Adam"])
def test_rewind_of_one_modality(inner: str) -> None:
    model, optimizer, best, before = trained_until_a_stops("modality", inner)
    for name, value in weights(model).items():
        assert torch.equal(value, (best if name.startswith("audio_net") else before)[0][name]), name
    indices = {i for i, (name, _) in enumerate(model.named_parameters()) if name.startswith("audio_net")}
    state = inner_of(optimizer).state_dict()
    for index, kept in state["state"].items():
        assert_same_state(kept, (best if index in indices else before)[1]["state"][index])


def test_no_rewind() -> None:
    model, optimizer, _, (last_weights, last_state) = trained_until_a_stops("none")
    assert_same(weights(model), last_weights)
    assert_same_state(inner_of(optimizer).state_dict(), last_state)
    assert optimizer.state_dict()["modbalance"]["methods"]["mses"]["copies"] == {}


@pytest.mark.parametrize("rewind", ["all", "modality"])
def test_a_rewound_optimizer_does_not_write_into_its_copy(rewind: str) -> None:
    model, optimizer, _, _ = trained_until_a_stops(rewind)
    method = optimizer._lifecycle.methods[0]
    kept = copy.deepcopy(method.copies)  # type: ignore[attr-defined]
    train(model, optimizer, batches(model, 2, seed=9))
    assert_same_state(method.copies, kept)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("names", "rewind", "bound"), [("ab", "all", 4), ("abc", "all", 15), ("abc", "modality", 3), ("ab", "none", 0)]
)
def test_copies_are_few(names: str, rewind: str, bound: int) -> None:
    optimizer = balanced(multimodal(names), "mses", patience=90, rewind=rewind)
    counts, lowest = [], 1.0
    for epoch in range(80):
        lowest *= 0.5
        end(optimizer, *[lowest if epoch * epoch % 7 % len(names) == u else 1.0 for u in range(len(names))])
        counts.append(len(optimizer._lifecycle.methods[0].copies))  # type: ignore[attr-defined]
    assert min(bound, 2) <= max(counts) <= bound


def test_rewinding_everything_takes_the_best_epochs_back_too() -> None:
    model = multimodal()
    optimizer = balanced(model, "mses", patience=2)
    method: Any = optimizer._lifecycle.methods[0]
    for a, b in ((1.0, 1.0), (0.9, 2.0), (2.0, 0.1), (2.0, 0.1), (2.0, 0.1)):
        end(optimizer, a, b)
    assert method.ratio == {"a": 0, "b": 1}
    assert method.best["b"] == {"loss": 1.0, "epoch": 0}


def test_a_rewind_to_what_was_the_best_before_a_rewind() -> None:
    model = multimodal()
    optimizer = balanced(model, "mses", patience=2)
    criterion = optimizer.criterion(LOSS)
    after: list[dict[str, Tensor]] = []
    # Best epochs: a 1, b 3. After epoch 4 a stops, everything goes back to epoch 1, when that of b was 0.
    for batch, a, b in zip(batches(model, 6), (1.0, 0.5, 2, 2, 2, 2), (1.0, 1.0, 0.1, 0.1, 2, 3), strict=True):
        train(model, optimizer, [batch], criterion)
        after.append(weights(model))
        end(optimizer, a, b)
        if len(after) == 5:
            assert_same(weights(model), after[1])
    assert_same(weights(model), after[0])
    assert optimizer.should_stop


def test_losses_that_are_not_finite_are_no_improvement_and_counted() -> None:
    model = multimodal()
    optimizer = balanced(model, "mses", patience=3)
    for a in (math.nan, -math.inf, 1.0, 0.5):
        end(optimizer, a, 1.0)
    method: Any = optimizer._lifecycle.methods[0]
    assert optimizer.metrics()["mses/nonfinite_loss/a"] == 2
    assert method.best["a"]["epoch"] == 3


def test_should_stop_once_all_have_stopped() -> None:
    model = multimodal("abc")
    optimizer = stopped(model, 1, 0, 1)
    assert not optimizer.should_stop
    end(optimizer, 2.0, 2.0, 2.0)
    end(optimizer, 2.0, 2.0, 2.0)
    assert optimizer.should_stop
    train(model, optimizer, batches(model, 1))
    end(optimizer, 0.1, 0.1, 0.1)
    assert optimizer.should_stop


def test_a_scheduler_is_not_rewound_but_learning_rates_are() -> None:
    model = multimodal()
    optimizer = balanced(model, "mses", patience=0)
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer, batches(model, 1))
    end(optimizer, 1.0, 1.0)
    optimizer.step()
    scheduler.step()
    end(optimizer, 2.0, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert scheduler.last_epoch == 1


def test_a_model_free_run_rewinds() -> None:
    parameters = {name: nn.Parameter(torch.ones(2)) for name in "ab"}
    groups = [{"params": [p], "modality": name} for name, p in parameters.items()]
    for rewind, back in (("all", "ab"), ("modality", "a"), ("none", "")):
        optimizer = BalancedOptimizer(SGD(groups, lr=0.1, momentum=0.9), "mses", patience=0, rewind=rewind)
        end(optimizer, 1.0, 1.0)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.fill_(5.0)
        end(optimizer, 2.0, 0.5)
        assert {name for name, p in parameters.items() if p[0] == 1} == set(back)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.fill_(1.0)


@pytest.mark.parametrize("rewind", ["all", "modality"])
def test_a_state_without_copies_is_refused_where_they_are_needed(rewind: str) -> None:
    optimizer = stopped(multimodal(), 1, 0, rewind="none")
    other = balanced(multimodal(), "mses", rewind=rewind)
    with pytest.raises(CheckpointError, match="should hold copies to rewind to"):
        other.load_state_dict(optimizer.state_dict())


def test_the_end_of_training_is_remembered() -> None:
    optimizer = stopped(multimodal(), 1, 1)
    other = balanced(multimodal(), "mses")
    assert optimizer.should_stop
    other.load_state_dict(optimizer.state_dict())
    assert other.should_stop
