"""MSLR and MSES: where their numbers come from, when they act, what they keep, and what they refuse."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from modbalance import BalancedOptimizer, CheckpointError, ConfigError, ModbalanceWarning, ObservationError
from support.models import Multimodal
from support.operation_counts import READS, CountOps
from support.optimizers import INNER, assert_same_state, inner_of, wrap
from support.training import assert_same, audio_visual, balanced, batches, multimodal, sgd, train, weights

LOSS = nn.CrossEntropyLoss()
QUANTITY = {"mslr": "accuracy", "mses": "loss"}
over_both = pytest.mark.parametrize("method", QUANTITY)


def end(optimizer: BalancedOptimizer, *numbers: float) -> None:
    """End an epoch with numbers for each modality, as accuracies and as losses."""
    by_modality = dict(zip(optimizer._balancer.run.modalities, numbers, strict=True))
    optimizer.end_epoch(metrics={"accuracy": by_modality, "loss": by_modality})


def stopped(model: nn.Module, *which: float, patience: int = 0, **arguments: Any) -> BalancedOptimizer:
    """Return MSES after two epochs without steps: modalities with a 1 got worse and stopped, the others better."""
    optimizer = balanced(model, "mses", patience=patience, **arguments)
    end(optimizer, *[1.0 for _ in which])
    end(optimizer, *[2.0 if worse else 0.5 for worse in which])
    return optimizer


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the top parts of what has changed: a, b, fusion."""
    names = [name for name, value in weights(model).items() if not torch.equal(value, before[name])]
    return {name.removeprefix("encoders.").split(".")[0] for name in names}


# Where the numbers come from


def validation(model: nn.Module) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
    """Return a loader of unequal batches, and all of it at once: inputs and target."""
    data = [*batches(model, 2, 5, seed=7), *batches(model, 1, 2, seed=8)]
    joined = [torch.cat(parts) for parts in zip(*[(*inputs, y) for inputs, y in data], strict=True)]
    return [(*inputs, y) for inputs, y in data], joined


def alone(model: Multimodal, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Return unimodal logits in eval mode, others zeroed."""
    was = model.training
    model.eval()
    with torch.no_grad():
        z = [phi(x) for phi, x in zip(model.encoders.values(), inputs, strict=True)]
        logits = [model.fusion(*[f if i == u else torch.zeros_like(f) for i, f in enumerate(z)]) for u in range(len(z))]
    model.train(was)
    return dict(zip(model.encoders, logits, strict=True))


def test_accuracy_is_measured_on_the_loader() -> None:
    model = multimodal("abc", "mlp")
    loader, (*inputs, target) = validation(model)
    optimizer = balanced(model, "mslr")
    optimizer.criterion(LOSS)
    before = weights(model)
    optimizer.end_epoch(val=loader)
    for name, logits in alone(model, inputs).items():
        expected = (logits.argmax(1) == target).double().mean().item()
        assert optimizer.metrics()[f"mslr/accuracy/{name}"] == pytest.approx(expected)
    assert_same(weights(model), before)
    assert model.training


def test_loss_is_measured_on_the_loader_as_a_mean_over_samples() -> None:
    model = multimodal("abc", "mlp")
    loader, (*inputs, target) = validation(model)
    optimizer = balanced(model, "mses")
    optimizer.criterion(LOSS)
    optimizer.end_epoch(val=loader)
    for name, logits in alone(model, inputs).items():
        assert optimizer.metrics()[f"mses/best_loss/{name}"] == pytest.approx(LOSS(logits, target).item())


@over_both
def test_loader_and_the_same_numbers_have_the_same_effect(method: str) -> None:
    model, other = multimodal(dtype=torch.float64), multimodal(dtype=torch.float64)
    data = batches(model, 6, dtype=torch.float64)
    loader = [(*inputs, y) for inputs, y in batches(model, 3, 5, seed=5, dtype=torch.float64)]
    options: dict[str, Any] = {"memory": 2} if method == "mslr" else {"patience": 0, "rewind": "none"}
    measured, told = (balanced(each, method, sgd(each, lr=2.0), **options) for each in (model, other))
    criterion, same = measured.criterion(LOSS), told.criterion(LOSS)
    for batch in data:
        train(model, measured, [batch], criterion)
        train(other, told, [batch], same)
        assert_same(model, other)
        measured.end_epoch(val=loader)
        kept = measured._balancer.hooks.methods[0]
        numbers = {n: v[-1] for n, v in kept.accuracies.items()} if method == "mslr" else kept.losses  # type: ignore[attr-defined]
        told.end_epoch(metrics={QUANTITY[method]: numbers})
    changed = [value for key, value in told.metrics().items() if "/coefficient/" in key and value != 1]
    assert changed


def test_numbers_win_over_a_loader() -> None:
    optimizer = balanced(multimodal(), "mslr")
    optimizer.end_epoch(metrics={"accuracy": {"a": 0.25, "b": 0.5}}, val=[])
    assert optimizer.metrics()["mslr/accuracy/a"] == 0.25


def test_probabilities_and_ignored_elements_in_accuracies() -> None:
    model = multimodal("ab", "mlp")
    _, (a, b, target) = validation(model)
    expected = {n: (o.argmax(1) == target).double()[1:].mean().item() for n, o in alone(model, [a, b]).items()}
    ignored, soft = target.clone(), nn.functional.one_hot(target, 3).float()
    ignored[0] = -100
    for labels, slicer in ((ignored, slice(None)), (soft, slice(1, None))):
        optimizer = balanced(model, "mslr")
        optimizer.criterion(LOSS)
        optimizer.end_epoch(val=[(a[slicer], b[slicer], labels[slicer])])
        for name, value in expected.items():
            assert optimizer.metrics()[f"mslr/accuracy/{name}"] == pytest.approx(value)


@over_both
def test_neither_numbers_nor_loader_is_an_error_that_names_both(method: str) -> None:
    quantity = QUANTITY[method]
    expected = (
        rf"needs the {quantity} of each modality.*metrics=\{{'{quantity}': \{{'a': ..., 'b': ...\}}\}}.*val=loader"
    )
    optimizer = balanced(multimodal(), method)
    other = {"loss": "accuracy", "accuracy": "loss"}[quantity]
    givens: list[dict[str, Any]] = [{}, {"train": []}, {"metrics": {other: {"a": 1.0, "b": 1.0}}}]
    for given in givens:
        with pytest.raises(ObservationError, match=expected):
            optimizer.end_epoch(**given)
    assert optimizer.epoch == 0


@over_both
def test_without_a_model_numbers_are_needed(method: str) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "modality": name} for name in "ab"]
    optimizer = BalancedOptimizer(SGD(groups, lr=0.1), method)
    with pytest.raises(ObservationError, match=r"metrics=.*val=loader\)`, which also needs `model=`"):
        optimizer.end_epoch(val=[])
    end(optimizer, 0.5, 0.5)
    assert optimizer.epoch == 1


@over_both
def test_numbers_for_each_modality_are_needed(method: str) -> None:
    optimizer = balanced(multimodal(), method)
    with pytest.raises(ObservationError, match=r"number for each of \['a', 'b'\]. Found \['a', 'c'\]"):
        optimizer.end_epoch(metrics={QUANTITY[method]: {"a": 1.0, "c": 1.0}})


def test_a_loss_that_was_never_given_cannot_be_measured() -> None:
    optimizer = balanced(multimodal(), "mses")
    with pytest.raises(ConfigError, match=r"build `opt.criterion\(loss_fn\)` first"):
        optimizer.end_epoch(val=validation(multimodal())[0])


def test_accuracy_of_other_tasks_must_be_given() -> None:
    model = multimodal()
    optimizer = balanced(model, "mslr")
    inputs, _ = batches(model, 1)[0]
    with pytest.raises(ConfigError, match=r"Accuracy should be that of classes.*metrics="):
        optimizer.end_epoch(val=[(*inputs, torch.randint(2, (6, 3)))])


def test_own_classifiers_without_a_fusion_are_their_own_logits() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.a(a) + self.b(b)

    model = Late()
    optimizer = BalancedOptimizer(sgd(model), "mslr", model=model, modalities={"a": "a", "b": "b"}, unimodal=dict)
    a, b, y = torch.randn(9, 5), torch.randn(9, 5), torch.randint(3, (9,))
    optimizer.end_epoch(val=[(a, b, y)])
    for name, logits in (("a", model.a(a)), ("b", model.b(b))):
        expected = (logits.argmax(1) == y).double().mean().item()
        assert optimizer.metrics()[f"mslr/accuracy/{name}"] == pytest.approx(expected)


# When they act


@over_both
def test_outside_its_window_a_method_is_the_inner_optimizer_and_needs_nothing(method: str) -> None:
    model, plain = audio_visual(), audio_visual()
    data = batches(model, 4)
    optimizer, inner = balanced(model, method, start_epoch=1, end_epoch=1), sgd(plain)
    for epoch, batch in enumerate(data):
        train(model, optimizer, [batch])
        train(plain, inner, [batch])
        assert_same(model, plain)
        if epoch == 1:
            end(optimizer, 0.5, 0.5)
        else:
            optimizer.end_epoch()


@pytest.mark.parametrize("mode", ["grad", "lr"])
def test_outside_its_window_initial_factors_vanish(mode: str) -> None:
    model, plain = audio_visual(), audio_visual()
    data = batches(model, 3)
    optimizer = balanced(model, "mslr", mode=mode, init={"audio": 0.5}, start_epoch=1, end_epoch=1)
    for epoch in (0, 2):
        optimizer.epoch = epoch
        train(model, optimizer, data[epoch : epoch + 1])
    train(plain, sgd(plain), [data[0], data[2]])
    assert_same(model, plain)
    optimizer.epoch = 1
    train(model, optimizer, data[1:2])
    assert optimizer.metrics()["mslr/coefficient/audio"] == 0.5


def test_windows() -> None:
    mslr, mses = (balanced(multimodal(), name)._balancer.hooks.methods[0] for name in ("mslr", "mses"))
    assert [mslr.is_active(epoch) for epoch in (0, 19, 20)] == [True, True, False]
    assert [mses.is_active(epoch) for epoch in (0, 19, 200)] == [True, True, True]


@over_both
@pytest.mark.parametrize("mode", ["grad", "lr"])
def test_factors_of_one_change_no_bit(method: str, mode: str) -> None:
    model, plain = audio_visual(), audio_visual()
    data = batches(model, 3)
    options: dict[str, Any] = {"mode": mode} if method == "mslr" else {}
    optimizer = balanced(model, method, **options)
    train(model, optimizer, data[:1])
    end(optimizer, 0.5, 0.5)
    train(model, optimizer, data[1:])
    assert_same(model, train(plain, sgd(plain), data))


def test_scaling_the_gradient_is_not_scaling_the_learning_rate() -> None:
    finals = []
    for mode in ("grad", "lr"):
        model = multimodal()
        inner = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        train(model, balanced(model, "mslr", inner, mode=mode, init={"a": 0.3}), batches(model, 5))
        finals.append(weights(model))
    assert (finals[0]["encoders.a.0.weight"] - finals[1]["encoders.a.0.weight"]).abs().max() > 1e-3
    assert (finals[0]["encoders.b.0.weight"] - finals[1]["encoders.b.0.weight"]).abs().max() < 1e-1


def test_a_learning_rate_of_own_groups_is_what_mode_lr_equals_with_decoupled_decay() -> None:
    model, grouped = multimodal(dtype=torch.float64), multimodal(dtype=torch.float64)
    data = batches(model, 4, dtype=torch.float64)
    inner = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    optimizer = balanced(model, "mslr", inner, mode="lr", init={"a": 0.3, "b": 2.0})
    groups: list[dict[str, Any]] = [
        {"params": list(grouped.encoders["a"].parameters()), "lr": 0.003},
        {"params": list(grouped.encoders["b"].parameters()), "lr": 0.02},
        {"params": list(grouped.fusion.parameters())},
    ]
    train(model, optimizer, data)
    train(grouped, AdamW(groups, lr=0.01, weight_decay=0.1), data)
    for name, value in weights(model).items():
        assert (value - weights(grouped)[name]).abs().max() < 1e-12


def test_adam_is_warned_of_only_where_gradients_are_scaled() -> None:
    model = multimodal()
    with pytest.warns(ModbalanceWarning, match="`mslr` scales gradients"):
        balanced(model, "mslr", AdamW(model.parameters()))
    balanced(model, "mslr", AdamW(model.parameters()), mode="lr")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("mode", ["grad", "lr"])
def test_accuracies_that_are_not_finite_act_as_one_and_are_counted(bad: float, mode: str) -> None:
    model, plain = multimodal(), multimodal()
    optimizer = balanced(model, "mslr", memory=1, mode=mode)
    end(optimizer, bad, 0.5)
    end(optimizer, 0.5 * bad, 0.5)
    data = batches(model, 2)
    assert_same(train(model, optimizer, data), train(plain, sgd(plain), data))
    metrics = optimizer.metrics()
    assert metrics["mslr/nonfinite/a"] == 2
    assert metrics["mslr/nonfinite_accuracy/a"] == 2
    assert metrics["mslr/coefficient/a"] == 1


def test_accuracies_of_zero_act_as_one_and_are_counted() -> None:
    model, plain = multimodal(), multimodal()
    optimizer = balanced(model, "mslr", memory=2)
    for accuracy in (0.0, 0.0, 0.3):
        end(optimizer, accuracy, 0.5)
    data = batches(model, 1)
    assert_same(train(model, optimizer, data), train(plain, sgd(plain), data))
    assert optimizer.metrics()["mslr/nonfinite/a"] == 1


# MSES


def test_patience_is_strict_and_the_best_first_epoch_counts() -> None:
    optimizer = balanced(multimodal(), "mses", patience=2)
    for worse in (1.0, 2.0, 2.0):
        end(optimizer, worse, 1.0 / worse)
        assert optimizer._balancer.hooks.methods[0].ratio == {"a": 1, "b": 1}  # type: ignore[attr-defined]
    end(optimizer, 2.0, 0.1)
    assert optimizer._balancer.hooks.methods[0].ratio == {"a": 0, "b": 1}  # type: ignore[attr-defined]


def test_smoothing_takes_the_raw_loss_before() -> None:
    optimizer = balanced(multimodal(), "mses")
    for loss in (1.0, 0.5, 0.1):
        end(optimizer, loss, loss)
    assert optimizer.metrics()["mses/best_loss/a"] == pytest.approx(0.6 * 0.5 + 0.4 * 0.1)


def test_an_equal_loss_is_no_improvement() -> None:
    optimizer = balanced(multimodal(), "mses", patience=0, rewind="none")
    end(optimizer, 1.0, 1.0)
    end(optimizer, 1.0, 0.5)
    assert optimizer._balancer.hooks.methods[0].ratio == {"a": 0, "b": 1}  # type: ignore[attr-defined]


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
    method = optimizer._balancer.hooks.methods[0]
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
        counts.append(len(optimizer._balancer.hooks.methods[0].copies))  # type: ignore[attr-defined]
    assert min(bound, 2) <= max(counts) <= bound


def test_rewinding_everything_takes_the_best_epochs_back_too() -> None:
    model = multimodal()
    optimizer = balanced(model, "mses", patience=2)
    method: Any = optimizer._balancer.hooks.methods[0]
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
    method: Any = optimizer._balancer.hooks.methods[0]
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


# State, dry runs, cost, errors


def resumed_pair(method: str, steps_before: int, options: dict[str, Any], inner: str) -> None:
    """Train 5 epochs of 2 steps, once with a restart from a file after ``steps_before`` steps."""
    model, other = audio_visual(), audio_visual(seed=5)
    data = batches(model, 10)
    numbers = [(1.0, 1.0), (0.9, 2.0), (2.0, 0.2), (0.3, 2.0), (0.2, 0.1)]

    def go_on(each: nn.Module, optimizer: BalancedOptimizer, steps: range) -> None:
        criterion = optimizer.criterion(LOSS)
        for index in steps:
            train(each, optimizer, [data[index]], criterion)
            if index % 2:
                end(optimizer, *numbers[index // 2])

    optimizer, resumed = wrap(model, inner, method, **options), wrap(other, inner, method, **options)
    go_on(model, optimizer, range(steps_before))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved, state = torch.load(file, weights_only=True)
    other.load_state_dict(saved)
    resumed.load_state_dict(state)
    assert resumed.should_stop is optimizer.should_stop
    for each, its_optimizer in ((model, optimizer), (other, resumed)):
        go_on(each, its_optimizer, range(steps_before, 10))
    assert_same(other, model)
    assert_same_state(resumed.state_dict(), optimizer.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("steps_before", [3, 4, 6, 8])
@pytest.mark.parametrize("inner", ["SGD", "Adam"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mslr", {"memory": 1, "end_epoch": 3}),
        ("mslr", {"memory": 2, "mode": "lr"}),
        ("mses", {"patience": 0, "rewind": "all"}),
        ("mses", {"patience": 1, "rewind": "all", "end_epoch": 3}),
        ("mses", {"patience": 0, "rewind": "modality", "freeze": "hard"}),
    ],
)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    method: str, options: dict[str, Any], inner: str, steps_before: int
) -> None:
    resumed_pair(method, steps_before, options, inner)


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


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mslr", {"memory": 1, "init": {"audio": 0.5}}),
        ("mslr", {"memory": 1, "init": {"audio": 0.5}, "mode": "lr"}),
        ("mses", {"patience": 0}),
        ("mses", {"patience": 0, "freeze": "hard", "rewind": "modality"}),
    ],
)
def test_a_dry_run_changes_nothing_and_logs(method: str, options: dict[str, Any]) -> None:
    model, plain = audio_visual(), audio_visual()
    data = batches(model, 3)
    optimizer = balanced(model, method, dry_run=True, **options)
    criterion = optimizer.criterion(LOSS)
    for batch, number in zip(data, (0.5, 2.0, 3.0), strict=True):
        train(model, optimizer, [batch], criterion)
        end(optimizer, number, number)
    assert_same(model, train(plain, sgd(plain), data))
    assert not optimizer.should_stop
    assert optimizer.metrics()[f"{method}/coefficient/audio"] != 1


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mslr", {"init": {"audio": 0.5}}),
        ("mslr", {"init": {"audio": 0.5}, "mode": "lr"}),
        ("mses", {}),
        ("mses", {"freeze": "hard"}),
    ],
)
def test_no_host_read_in_a_step(method: str, options: dict[str, Any]) -> None:
    def ops(name: str, **arguments: Any) -> Any:
        model = audio_visual()
        optimizer = balanced(model, name, **arguments)
        if name == "mses":
            optimizer = stopped(model, 1, 0, **arguments)
        train(model, optimizer, batches(model, 1))
        with CountOps() as counted:
            train(model, optimizer, batches(model, 1))
        return counted.ops

    added = ops(method, **options) - ops("none")
    assert not READS & added.keys()
    assert 0 < added.total() <= 40


@pytest.mark.parametrize(
    ("method", "options"),
    [("mslr", {}), ("mslr", {"mode": "lr", "init": {"audio": 0.5}}), ("mses", {"freeze": "hard"})],
)
def test_a_step_runs_on_fake_tensors(method: str, options: dict[str, Any]) -> None:
    with FakeTensorMode():
        model = audio_visual()
        optimizer = balanced(model, method, **options)
        criterion = optimizer.criterion(LOSS)
        for _ in range(2):
            optimizer.zero_grad()
            target = torch.zeros(8, dtype=torch.long)
            criterion(model(torch.randn(8, 8, 8), torch.randn(8, 3, 2, 8, 8)), target).backward()
            optimizer.step()
    assert optimizer._balancer.run.steps == 2


@pytest.mark.parametrize("mode", ["grad", "lr"])
@pytest.mark.parametrize("part", ["encoders.a", "encoders.b.0"])
def test_frozen_parts_and_a_batch_of_one(mode: str, part: str) -> None:
    model = multimodal()
    before = weights(model)
    model.get_submodule(part).requires_grad_(False)
    train(model, balanced(model, "mslr", mode=mode, init={"a": 0.5, "b": 0.5}), batches(model, 2, size=1))
    same = {name for name, value in weights(model).items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith(part)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradients_keep_their_dtype(dtype: torch.dtype) -> None:
    model = multimodal(dtype=dtype)
    optimizer = balanced(model, "mslr", init={"a": 0.9 * 0.8})
    inputs, target = batches(model, 1, dtype=dtype)[0]
    optimizer.criterion(LOSS)(model(*inputs), target).backward()
    raw = model.get_parameter("encoders.a.0.weight").grad
    assert raw is not None
    expected = raw * (0.9 * 0.8)
    optimizer.modulate()
    assert raw.dtype == dtype
    assert torch.equal(raw, expected)


def test_the_paper_preset_differs() -> None:
    mslr, mses = (balanced(multimodal(), name, preset="paper")._balancer.hooks.methods[0] for name in QUANTITY)
    assert (mslr.mode, mslr.end_epoch) == ("lr", None)  # type: ignore[attr-defined]
    assert (mses.freeze, mses.rewind) == ("hard", "modality")  # type: ignore[attr-defined]


BAD: list[tuple[str, dict[str, Any]]] = [
    ("mslr", {"memory": 0}),
    ("mslr", {"mode": "rate"}),
    ("mslr", {"init": {"a": 0}}),
    ("mslr", {"init": {"a": "1"}}),
    ("mslr", {"init": 1.0}),
    ("mslr", {"init": {"a": math.nan}}),
    ("mses", {"patience": -1}),
    ("mses", {"freeze": "soft"}),
    ("mses", {"rewind": "b"}),
]


@pytest.mark.parametrize(("method", "option"), BAD)
def test_options_out_of_range(method: str, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Option `{next(iter(option))}` of method `{method}` should be"):
        balanced(multimodal(), method, **option)


def test_unknown_names_in_init() -> None:
    with pytest.raises(ConfigError, match=r"`init` of method `mslr` names 'audoi'. Did you mean `audio`"):
        balanced(audio_visual(), "mslr", init={"audoi": 1.0})


@over_both
def test_modalities_are_needed(method: str) -> None:
    with pytest.raises(ConfigError, match="at least 2 modalities"):
        BalancedOptimizer(SGD([nn.Parameter(torch.ones(1))], lr=0.1), method)


@over_both
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("copied", [copy.deepcopy], ids=["deepcopy"])
def test_every_inner_optimizer_and_copies(method: str, inner: str, copied: Callable[[Any], Any]) -> None:
    model = multimodal()
    optimizer = wrap(model, inner, method, **({"memory": 1} if method == "mslr" else {"patience": 0}))
    train(model, optimizer, batches(model, 2))
    end(optimizer, 0.5, 0.6)
    twin, other = copied((model, optimizer))
    for each, its_optimizer in ((model, optimizer), (twin, other)):
        end(its_optimizer, 0.6, 0.5)
        train(each, its_optimizer, batches(model, 2, seed=3))
    assert_same(twin, model)
