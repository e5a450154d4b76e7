"""Diagnosing & Re-learning: when it acts, what it touches, what it asks for, and what survives a checkpoint."""

from __future__ import annotations

import copy
import io
import math
import random
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.optim import SGD, Adagrad
from torch.utils.data import DataLoader, TensorDataset

from modbalance import BalancedOptimizer, CheckpointError, ConfigError, ObservationError
from modbalance_ogm_ge import OGMGE
from modbalance_relearning import Relearning
from support.models import AudioVisual, Multimodal
from support.operation_counts import CountOps
from support.optimizers import INNER, assert_same_state, inner_of, wrap
from support.training import (
    Batch,
    assert_close,
    assert_same,
    audio_visual,
    balanced,
    batches,
    multimodal,
    sgd,
    train,
    weights,
)

A, B = "encoders.a.0.weight", "encoders.b.0.weight"
ALWAYS: dict[str, Any] = {"period": 1, "count": 100, "offset": -1}


def loader_of(
    model: nn.Module, size: int = 24, seed: int = 3, batch_size: int = 7, **arguments: Any
) -> DataLoader[Any]:
    (data,) = batches(model, 1, size, seed)
    inputs, target = data
    return DataLoader(TensorDataset(*inputs, target), batch_size, **arguments)


def loaders(model: nn.Module, **arguments: Any) -> dict[str, Any]:
    return {"train": loader_of(model, **arguments), "val": loader_of(model, 13, seed=4)}


def trained(method: Any = "relearning", model: nn.Module | None = None, steps: int = 3, **arguments: Any) -> Any:
    """Return a model after a few steps, and its optimizer."""
    model = multimodal() if model is None else model
    if method == "relearning":
        arguments = ALWAYS | arguments
    optimizer = balanced(model, method, **arguments)
    train(model, optimizer, batches(model, steps))
    return model, optimizer


def blended(before: dict[str, Tensor], initial: dict[str, Tensor], metrics: dict[str, float]) -> dict[str, Tensor]:
    """Return by name what the encoders of `Multimodal` should be after re-learning."""
    expected = dict(before)
    for name in before:
        if name.startswith("encoders."):
            w = metrics[f"relearning/weight/{name.split('.')[1]}"]
            expected[name] = w * initial[name] + (1 - w) * before[name]
    return expected


# When it acts


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({}, [20, 40, 60]),
        ({"preset": "paper"}, [19, 39, 59]),
        ({"offset": 20}, [20, 40, 60]),
        ({"offset": 5, "count": 2}, [5, 25]),
        ({"period": 1, "count": 4}, [1, 2, 3, 4]),
        ({"period": 1, "count": 2, "offset": -1}, [0, 1]),
        ({"period": 30, "count": 5}, [30, 60, 90]),
    ],
)
def test_schedule(options: dict[str, Any], epochs: list[int]) -> None:
    method = Relearning.configure(**options)
    assert [epoch for epoch in range(100) if method.is_due(epoch)] == epochs


def test_end_epoch_acts_on_schedule_and_leaves_other_epochs_alone() -> None:
    model = multimodal()
    optimizer = balanced(model, "relearning", period=2, count=2)
    acted = []
    for epoch in range(8):
        train(model, optimizer, batches(model, 2, seed=epoch))
        before = weights(model)
        optimizer.end_epoch(**loaders(model))
        if any(not torch.equal(before[name], value) for name, value in weights(model).items()):
            acted.append(epoch)
    assert acted == [2, 4]


def test_a_step_costs_what_it_costs_without() -> None:
    def ops(method: str) -> Any:
        model = audio_visual()
        optimizer = balanced(model, method)
        *warm_up, last = batches(model, 3, size=16)
        train(model, optimizer, warm_up)
        with CountOps() as counted:
            train(model, optimizer, [last])
        return counted.ops

    assert ops("relearning") == ops("none")


def test_nothing_of_a_forward_is_kept() -> None:
    model, optimizer = trained()
    model(*batches(model, 1)[0][0])
    assert optimizer._lifecycle.training.watch.forward is None


def test_a_step_runs_on_fake_tensors() -> None:
    with FakeTensorMode():
        model = audio_visual()
        optimizer = balanced(model, "relearning")
        criterion = optimizer.criterion(nn.CrossEntropyLoss())
        for _ in range(2):
            optimizer.zero_grad()
            logits = model(torch.randn(8, 8, 8), torch.randn(8, 3, 2, 8, 8))
            criterion(logits, torch.zeros(8, dtype=torch.long)).backward()
            optimizer.step()
    assert model.audio_net[0].weight.grad is not None


def test_training_without_our_criterion_is_fine() -> None:
    model, plain = (multimodal() for _ in range(2))
    optimizer = balanced(model, "relearning")
    train(model, optimizer, batches(model, 3), nn.CrossEntropyLoss())
    train(plain, sgd(plain), batches(plain, 3))
    assert_same(model, plain)


# What it touches


def test_encoders_are_blended_in_place_and_nothing_else_changes() -> None:
    model = multimodal()
    initial = weights(model)
    parameters = dict(model.named_parameters())
    _, optimizer = trained(model=model)
    before, state = weights(model), copy.deepcopy(inner_of(optimizer).state_dict())
    optimizer.end_epoch(**loaders(model))

    expected = blended(before, initial, optimizer.metrics())
    assert max(optimizer.metrics()[f"relearning/weight/{name}"] for name in "ab") > 0.1
    for name, value in weights(model).items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-7), name
    assert torch.equal(model.get_parameter("fusion.fc_out.weight"), before["fusion.fc_out.weight"])
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert_same_state(inner_of(optimizer).state_dict(), state)
    assert model.training


@pytest.mark.parametrize("mode", [True, False])
def test_flags_and_buffers_are_kept(mode: bool) -> None:
    model, optimizer = trained(model=audio_visual())
    model.train(mode)
    model.audio_net[1].eval()
    flags, buffers = [m.training for m in model.modules()], {n: b.clone() for n, b in model.named_buffers()}
    optimizer.end_epoch(**loaders(model))
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())


def test_metrics_hold_purities_and_weights() -> None:
    model, optimizer = trained(lam=2.0)
    optimizer.end_epoch(**loaders(model))
    metrics = optimizer.metrics()
    for name in "ab":
        train_purity, val_purity = (metrics[f"relearning/purity_{split}/{name}"] for split in ("train", "val"))
        assert 1 / 3 <= train_purity <= 1
        assert 1 / 3 <= val_purity <= 1
        assert metrics[f"relearning/weight/{name}"] == math.tanh(2.0 * abs(train_purity - val_purity))
        assert metrics[f"relearning/nonfinite/{name}"] == 0


def test_dry_run_computes_and_changes_nothing() -> None:
    options = {"blend_buffers": True, "recalibrate_bn": True, "reset_momentum": True}
    model, optimizer = trained(model=audio_visual(), dry_run=True, **options)
    plain, bare = trained("none", model=audio_visual())
    data = loaders(model, shuffle=True)
    before = torch.get_rng_state()
    optimizer.end_epoch(**data)
    assert torch.equal(torch.get_rng_state(), before)
    train(model, optimizer, batches(model, 1, seed=9))
    train(plain, bare, batches(plain, 1, seed=9))
    assert_same(model, plain)
    assert "relearning/weight/audio" in optimizer.metrics()


def test_blend_buffers() -> None:
    model = audio_visual()
    initial = weights(model)
    _, optimizer = trained(model=model, blend_buffers=True, lam=10.0)
    before = weights(model)
    optimizer.end_epoch(**loaders(model))
    w = optimizer.metrics()["relearning/weight/visual"]
    name = "visual_net.body.1.running_var"
    assert w > 0
    assert torch.allclose(weights(model)[name], w * initial[name] + (1 - w) * before[name], atol=1e-7)
    counter = "visual_net.body.1.num_batches_tracked"
    assert torch.equal(weights(model)[counter], before[counter])


def test_recalibrated_statistics_are_means_over_the_training_batches() -> None:
    model, optimizer = trained(model=audio_visual(), recalibrate_bn=True, lam=10.0)
    model.visual_net.body[1].requires_grad_(False)
    model.eval()
    frozen = model.visual_net.body[1].running_mean.clone()
    data = loaders(model)
    optimizer.end_epoch(**data)

    entering = [model.audio_net[0](audio.unsqueeze(1)).detach() for audio, _, _ in data["train"]]
    layer = model.audio_net[1]
    mean = torch.stack([each.mean((0, 2, 3)) for each in entering]).mean(0)
    var = torch.stack([each.var((0, 2, 3)) for each in entering]).mean(0)
    assert torch.allclose(layer.running_mean, mean, atol=1e-6)
    assert torch.allclose(layer.running_var, var, atol=1e-6)
    assert layer.num_batches_tracked == len(entering)
    assert layer.momentum == 0.1
    assert torch.equal(model.visual_net.body[1].running_mean, frozen)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", [name for name in INNER if name != "Adagrad"])
def test_reset_momentum_clears_the_state_of_the_encoders(name: str) -> None:
    model = multimodal()
    optimizer = wrap(model, name, "relearning", reset_momentum=True, **ALWAYS)
    train(model, optimizer, batches(model, 2))
    optimizer.end_epoch(**loaders(model))
    assert not any(optimizer.state.get(p) for p in model.encoders.parameters())
    assert all(optimizer.state[p] for p in model.fusion.parameters())
    train(model, optimizer, batches(model, 2))
    assert all(value.isfinite().all() for value in weights(model).values())


def test_a_frozen_encoder_stays_bitwise() -> None:
    model = multimodal()
    model.encoders["a"].requires_grad_(False)
    _, optimizer = trained(model=model, lam=100.0)
    before = weights(model)
    optimizer.end_epoch(**loaders(model))
    after = weights(model)
    assert optimizer.metrics()["relearning/weight/a"] > 0.5
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("encoders.a"))


def test_an_encoder_that_the_optimizer_leaves_out_stays_bitwise() -> None:
    model = multimodal()
    inner = SGD([*model.encoders["b"].parameters(), *model.fusion.parameters()], lr=0.1)
    _, optimizer = trained(model=model, inner=inner, lam=100.0)
    before = weights(model)
    optimizer.end_epoch(**loaders(model))
    assert torch.equal(model.get_parameter(A), before[A])
    assert not torch.equal(model.get_parameter(B), before[B])


def test_the_model_may_change_its_precision_after_the_optimizer_was_built() -> None:
    ours, theirs = (multimodal() for _ in range(2))
    for model, when in ((ours, "after"), (theirs, "before")):
        if when == "before":
            model.double()
        optimizer = balanced(model, "relearning", **ALWAYS)
        model.double()
        train(model, optimizer, batches(model, 2, dtype=torch.float64))
        data = [(*inputs, target) for inputs, target in batches(model, 4, dtype=torch.float64)]
        optimizer.end_epoch(train=data, val=data[:3])
    assert_same(ours, theirs)


@pytest.mark.cuda
def test_the_model_may_move_after_the_optimizer_was_built() -> None:
    model = audio_visual()
    optimizer = balanced(model, "relearning", **ALWAYS)
    model.cuda()
    train(model, optimizer, [(tuple(x.cuda() for x in inputs), y.cuda()) for inputs, y in batches(model, 2)])
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    before = weights(model)
    optimizer.end_epoch(**loaders(model))
    assert saved["modbalance"]["methods"]["relearning"]["initial"]["audio_net.0.weight"].device.type == "cpu"
    w = optimizer.metrics()["relearning/weight/visual"]
    initial = audio_visual().get_parameter("visual_net.body.0.weight").cuda()
    expected = w * initial + (1 - w) * before["visual_net.body.0.weight"]
    assert w > 0
    assert torch.allclose(weights(model)["visual_net.body.0.weight"], expected, atol=1e-7)


def test_composes_with_ogm_ge() -> None:
    model, alone, plain = (multimodal() for _ in range(3))
    initial = weights(model)
    method = [OGMGE(alpha=0.8, param_filter="all"), Relearning(**ALWAYS)]
    optimizer = balanced(model, method)
    balanced_alone = balanced(alone, OGMGE(alpha=0.8, param_filter="all"))
    data = batches(model, 3)
    train(model, optimizer, data)
    train(alone, balanced_alone, data)
    train(plain, sgd(plain), data)
    assert_same(model, alone)
    assert not torch.equal(model.get_parameter(A), plain.get_parameter(A))
    optimizer.end_epoch(**loaders(model))
    expected = blended(weights(alone), initial, optimizer.metrics())
    assert all(torch.allclose(value, expected[name], atol=1e-7) for name, value in weights(model).items())
    assert {key.split("/")[0] for key in optimizer.metrics()} == {"ogm_ge", "relearning"}


# The data


def test_the_order_of_the_loaders_does_not_matter() -> None:
    results = []
    for shuffle in (False, True):
        model, optimizer = trained()
        torch.manual_seed(11)
        optimizer.end_epoch(**loaders(model, shuffle=shuffle))
        results.append(model)
    assert_same(*results)


def consumed(preserve_rng: bool) -> list[bool]:
    """Return which random states a re-learning leaves as they were: torch, numpy, Python, the loader's own."""

    class Augmented(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            random.random()
            np.random.rand()
            return super().__getitem__(index)

    model, optimizer = trained(preserve_rng=preserve_rng)
    inputs, target = batches(model, 1, 24)[0]
    own = torch.Generator().manual_seed(0)
    data = DataLoader(Augmented(*inputs, target), 8, shuffle=True, generator=own)
    others = DataLoader(Augmented(*inputs, target), 8, shuffle=True)

    def states() -> list[Any]:
        of_numpy: Any = np.random.get_state()
        return [torch.get_rng_state(), of_numpy[1].copy(), random.getstate(), own.get_state()]

    before = states()
    optimizer.end_epoch(train=data, val=others)
    pairs = zip(before, states(), strict=True)
    return [torch.equal(a, b) if isinstance(a, Tensor) else bool(np.all(a == b)) for a, b in pairs]


def test_random_states_are_consumed_or_preserved() -> None:
    assert consumed(preserve_rng=True) == [True] * 4
    assert consumed(preserve_rng=False) == [False] * 4


def purities(
    model: nn.Module, data: list[tuple[Tensor, ...]], forward: Any = None, **arguments: Any
) -> dict[str, float]:
    optimizer = balanced(model, "relearning", **(ALWAYS | arguments))
    optimizer.end_epoch(train=data, val=data, forward=forward)
    return optimizer.metrics()


def test_tokens_are_averaged_and_maps_too() -> None:
    flat = torch.randn(30, 4)
    target = torch.randint(3, (30,))
    around_zero = torch.randn(30, 6, 1)
    spread = around_zero - around_zero.mean(1, keepdim=True)
    tokens, maps = flat.unsqueeze(1) + spread, (flat.unsqueeze(1) + spread).mT.reshape(30, 4, 2, 3)
    model = multimodal()

    class Mean(nn.Module):
        def __init__(self, dim: int | tuple[int, int]) -> None:
            super().__init__()
            self.dim = dim
            self.fc_out = nn.Linear(8, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fc_out(torch.cat([a.mean(self.dim), b.mean(self.dim)], -1))

    def forward(model: nn.Module, batch: Any) -> Any:
        return model.get_submodule("fusion")(batch[0], batch[1]), batch[2]

    expected = purities(model, [(flat, flat, target)], forward)
    for features, dim in ((tokens, 1), (maps, (2, 3))):
        model.fusion = Mean(dim)
        assert purities(model, [(features, features, target)], forward) == expected


def test_clusters_are_as_many_as_classes_or_as_told() -> None:
    model = multimodal()
    inputs, target = batches(model, 1, 30)[0]
    of_classes, of_three, of_many = (
        purities(model, [(*inputs, target)], num_clusters=number) for number in (None, 3, 30)
    )
    assert of_classes == of_three
    assert of_many["relearning/purity_train/a"] == 1.0


@pytest.mark.parametrize("shape", [(30,), (30, 1)])
@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.bool, torch.float32])
def test_binary_targets_of_any_type(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = multimodal()
    inputs, target = batches(model, 1, 30)[0]
    binary = target.clamp(max=1)
    given = [(*inputs, binary.to(dtype).reshape(shape))]
    assert purities(model, given, num_clusters=3) == purities(model, [(*inputs, binary)], num_clusters=3)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (torch.rand(30, 3), r"shape \(30, 3\), torch.float32"),
        (torch.rand(30), r"shape \(30,\), torch.float32"),
        (torch.tensor(1), r"shape \(\), torch.int64"),
        ({"label": torch.zeros(30)}, "dict"),
    ],
)
def test_targets_that_are_no_classes(target: Any, found: str) -> None:
    model = multimodal()
    inputs = batches(model, 1, 30)[0][0]
    with pytest.raises(ObservationError, match=f"one class index per sample.*{found}"):
        purities(model, [(*inputs, target)], lambda model, batch: (model(*batch[:-1]), batch[-1]))


def test_features_that_are_not_one_per_sample() -> None:
    model = multimodal()
    inputs, target = batches(model, 1, 30)[0]
    with pytest.raises(ObservationError, match="Found 30 of 'a' for 15 targets"):
        purities(model, [(*inputs, target[:15])])


def test_fewer_samples_than_clusters() -> None:
    model, optimizer = trained()
    before = weights(model)
    with pytest.raises(ObservationError, match=r"as many samples as clusters, 3. Found 2 in `val=`"):
        optimizer.end_epoch(train=loader_of(model), val=loader_of(model, 2))
    assert_same(model, before)


def test_a_batch_of_one_and_features_that_fall_together() -> None:
    model = multimodal()
    with torch.no_grad():
        for parameter in model.encoders["a"].parameters():
            parameter.zero_()
    inputs, target = batches(model, 1, 31)[0]
    split = [*zip(*(x.split(30) for x in (*inputs, target)), strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = purities(model, split)
    assert metrics["relearning/purity_train/a"] == pytest.approx(int(target.bincount().max()) / 31)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e38])
def test_features_that_are_not_finite_leave_the_encoder_alone_and_are_counted(bad: float) -> None:
    model = multimodal()
    _, optimizer = trained(model=model)
    before = weights(model)

    def forward(model: Multimodal, batch: Any) -> Any:
        a, b, target = batch
        features = model.encoders["a"](a), model.encoders["b"](b)
        features[0][0, 0], features[0][1, 0] = bad, -bad
        return model.fusion(*features), target

    optimizer.end_epoch(**loaders(model, batch_size=24), forward=forward)
    metrics = optimizer.metrics()
    assert metrics["relearning/nonfinite/a"] == 1
    assert metrics["relearning/nonfinite/b"] == 0
    assert math.isnan(metrics["relearning/weight/a"])
    assert torch.equal(model.get_parameter(A), before[A])
    assert all(value.isfinite().all() for value in weights(model).values())


def test_features_in_half_precision() -> None:
    model, optimizer = trained()

    def forward(model: nn.Module, batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(*batch[:-1]), batch[-1]

    optimizer.end_epoch(**loaders(model), forward=forward)
    assert 1 / 3 <= optimizer.metrics()["relearning/purity_train/a"] <= 1


# What it asks for


@pytest.mark.parametrize(
    "option",
    [
        {"lam": -0.1},
        {"lam": math.nan},
        {"period": 0},
        {"count": 0},
        {"offset": -2},
        {"num_clusters": 1},
        {"n_init": 0},
        {"canonical_order": "yes"},
        {"preserve_rng": None},
    ],
)
def test_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Option `{next(iter(option))}` of method `relearning` should be"):
        Relearning(**option)


@pytest.mark.parametrize(("given", "found"), [((), "neither"), (("train",), r"\['train'\]"), (("val",), r"\['val'\]")])
def test_missing_loaders(given: tuple[str, ...], found: str) -> None:
    model, optimizer = trained(period=2, offset=0)
    before, data = weights(model), loaders(model)
    optimizer.end_epoch()
    optimizer.end_epoch()
    with pytest.raises(ObservationError, match=rf"(?s)train=.*val=.*Found {found}"):
        optimizer.end_epoch(**{name: data[name] for name in given})
    assert optimizer.epoch == 2
    assert_same(model, before)
    optimizer.end_epoch(**data)
    assert optimizer.epoch == 3


def test_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"pip install 'modbalance\[relearning\]'"):
        balanced(multimodal(), "relearning")


def test_a_model_and_its_encoders_are_needed() -> None:
    model = multimodal()
    groups = [{"params": model.encoders[name].parameters(), "modality": name} for name in "ab"]
    with pytest.raises(ConfigError, match="pass `model=`, `modalities=`"):
        BalancedOptimizer(SGD(groups, lr=0.1), "relearning")
    with pytest.raises(ConfigError, match="pass `modalities=`"):
        BalancedOptimizer(SGD(groups, lr=0.1), "relearning", model=model)


def test_encoders_that_share_a_parameter_are_refused() -> None:
    model = multimodal()
    model.get_submodule("encoders.b.0").weight = model.get_parameter(A)
    with pytest.raises(ConfigError, match=r"share parameters.*encoders\.a\.0\.weight"):
        balanced(model, "relearning")


def test_reset_momentum_is_refused_where_the_state_would_not_come_back() -> None:
    model = multimodal()
    with pytest.raises(ConfigError, match="Adagrad"):
        balanced(model, "relearning", Adagrad(model.parameters()), reset_momentum=True)


# Checkpoints


def fresh(seed: int, inner: str = "SGD", **options: Any) -> tuple[AudioVisual, BalancedOptimizer]:
    model = audio_visual(seed=seed)
    return model, wrap(model, inner, "relearning", period=2, count=2, **options)


def events(model: nn.Module) -> list[Batch | dict[str, Any]]:
    """Return five epochs of two steps each; a dictionary ends an epoch."""
    schedule: list[Batch | dict[str, Any]] = []
    for epoch in range(5):
        schedule += [*batches(model, 2, seed=20 + epoch), loaders(model, shuffle=True)]
    return schedule


def play(model: nn.Module, optimizer: BalancedOptimizer, schedule: list[Batch | dict[str, Any]]) -> None:
    for event in schedule:
        if isinstance(event, dict):
            optimizer.end_epoch(**event)
        else:
            train(model, optimizer, [event])


@pytest.mark.parametrize("stop", [1, 6, 7, 8, 9, 10, 12, 14])  # epoch 2 ends with event 8, epoch 4 with event 14
@pytest.mark.parametrize("options", [{}, {"blend_buffers": True, "reset_momentum": True, "recalibrate_bn": True}])
def test_resumed_equals_uninterrupted_bitwise(stop: int, options: dict[str, Any]) -> None:
    inner = "Adam"
    whole, optimizer = fresh(0, inner, **options)
    schedule = events(whole)
    torch.manual_seed(1)
    play(whole, optimizer, schedule[:stop])
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "opt": optimizer.state_dict(), "rng": torch.get_rng_state()}, file)
    play(whole, optimizer, schedule[stop:])

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, resumed_optimizer = fresh(7, inner, **options)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["opt"])
    torch.set_rng_state(saved["rng"])
    play(resumed, resumed_optimizer, schedule[stop:])
    assert_same(resumed, whole)
    assert_same_state(resumed_optimizer.state_dict(), optimizer.state_dict())


def test_initial_weights_come_from_the_checkpoint() -> None:
    model, optimizer = fresh(0)
    other, loaded = fresh(7)
    loaded.load_state_dict(optimizer.state_dict())
    kept = loaded.state_dict()["modbalance"]["methods"]["relearning"]["initial"]
    assert torch.equal(kept["audio_net.0.weight"], model.get_parameter("audio_net.0.weight"))
    assert not torch.equal(kept["audio_net.0.weight"], other.get_parameter("audio_net.0.weight"))


def test_the_saved_state_does_not_follow_training() -> None:
    model, optimizer = trained()
    saved = optimizer.state_dict()["modbalance"]["methods"]["relearning"]["initial"]
    expected = multimodal()
    assert torch.equal(saved[A], expected.get_parameter(A))
    assert not torch.equal(saved[A], model.get_parameter(A))


def test_a_checkpoint_with_other_buffers_is_refused() -> None:
    _, optimizer = fresh(0)
    _, other = fresh(0, blend_buffers=True)
    with pytest.raises(CheckpointError, match=r"initial weights of these encoders.*audio/0/1\.running_mean"):
        other.load_state_dict(optimizer.state_dict())


def test_a_copied_optimizer_re_learns_too() -> None:
    model, optimizer = trained()
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    optimizer._lifecycle.training.watch.attach()
    assert_close(model_copy, model, 0)
    initial = optimizer_copy.state_dict()["modbalance"]["methods"]["relearning"]["initial"]
    assert torch.equal(initial[A], multimodal().get_parameter(A))


# The view


class Terminal(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_at_a_terminal_only(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    model, optimizer = trained()
    optimizer.end_epoch(**loaders(model))
    assert ("relearning" in screen.getvalue()) == is_terminal
    assert is_terminal or not screen.getvalue()
