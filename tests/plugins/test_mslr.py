"""MSLR on its own, and rules that hold for MSLR and MSES alike."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning, ObservationError
from support.modality_results import end, stopped
from support.models import Multimodal
from support.operation_counts import READS, CountOps
from support.optimizers import INNER, assert_same_state, wrap
from support.training import (
    assert_same,
    audio_visual,
    balanced,
    batches,
    multimodal,
    sgd,
    steps_on_fake_tensors,
    train,
    weights,
)

LOSS = nn.CrossEntropyLoss()
QUANTITY = {"mslr": "accuracy", "mses": "loss"}
over_both = pytest.mark.parametrize("method", QUANTITY)


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
        kept = measured._lifecycle.methods[0]
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
    mslr, mses = (balanced(multimodal(), name)._lifecycle.methods[0] for name in ("mslr", "mses"))
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
    assert steps_on_fake_tensors(lambda model: balanced(model, method, **options)) == 2


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
    mslr, mses = (balanced(multimodal(), name, preset="paper")._lifecycle.methods[0] for name in QUANTITY)
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
