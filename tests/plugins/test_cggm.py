"""CGGM: its probes, its state, and what it does where something is missing or not finite."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from modbalance import BalancedOptimizer, CheckpointError, ConfigError, ModbalanceWarning, ObservationError
from modbalance_cggm import CGGM
from modbalance_cggm.heads import measure
from modbalance_cggm.probes import Probe
from recipe_common.tasks.segmentation import mean_dice
from support.models import Multimodal
from support.operation_counts import READS, CountOps
from support.optimizers import assert_same_state
from support.segmentation import Segmenter, map_batches
from support.training import (
    assert_close,
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
KINDS = ["linear", "mlp", "transformer"]
over_kinds = pytest.mark.parametrize("probes", KINDS)
ANY_LARGE = "ignore:.B_i. of CGGM"


def method_of(optimizer: BalancedOptimizer) -> CGGM:
    method = optimizer._lifecycle.methods[0]
    assert isinstance(method, CGGM)
    return method


def probes_of(optimizer: BalancedOptimizer) -> dict[str, nn.Module]:
    built = method_of(optimizer)._built
    assert built is not None
    return built.modules


def slow(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.05, momentum=0.5)


def slow_once(parameters: Any) -> SGD:
    return slow(dict.fromkeys(parameters))


class NormProbe(nn.Sequential):
    def __init__(self, size: int, outputs: int) -> None:
        super().__init__(nn.Linear(size, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, outputs))


def norm_probe(name: str, size: int, outputs: int) -> nn.Module:
    return NormProbe(size, outputs)


def mean_hits(logits: Tensor, target: Tensor) -> tuple[Tensor, int]:
    return (logits.argmax(1) == target).sum(), len(target)


# No host reads


def ops_of_a_step(method: str, **arguments: Any) -> Counter[str]:
    model = audio_visual()
    optimizer = balanced(model, method, **arguments)
    *warm_up, last = batches(model, 3, size=64)
    train(model, optimizer, warm_up)
    with CountOps() as counted:
        train(model, optimizer, [last])
    return counted.ops


@over_kinds
@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("metric", ["accuracy", mean_hits])
def test_no_host_reads_are_added(probes: str, preset: str, metric: Any) -> None:
    chosen = {"probes": probes, "preset": preset, "metric": metric}
    added = ops_of_a_step("cggm", **chosen, probe_eval=True) - ops_of_a_step("none")
    assert added
    assert not READS & added.keys()


@over_kinds
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_a_step_runs_on_fake_tensors(probes: str, preset: str) -> None:
    assert steps_on_fake_tensors(lambda model: balanced(model, "cggm", probes=probes, preset=preset)) == 2


@pytest.mark.cuda
@over_kinds
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_a_step_does_not_synchronise(probes: str, preset: str) -> None:
    model = audio_visual().cuda()
    optimizer = balanced(model, "cggm", probes=probes, preset=preset)
    *warm_up, last = [(tuple(x.cuda() for x in xs), y.cuda()) for xs, y in batches(model, 3, size=64)]
    train(model, optimizer, warm_up)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(model, optimizer, [last])
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Traces


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("at_edge", [False, True])
@pytest.mark.parametrize("probes", [*KINDS, norm_probe])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(probes: Any, preset: str, at_edge: bool) -> None:
    model, resumed = multimodal("abc", "film"), multimodal("abc", "film", seed=9)
    options = {"probes": probes, "preset": preset, "probe_eval": True, "clip_grad_norm": 0.8}
    optimizer = balanced(model, "cggm", **options)
    train(model, optimizer, batches(model, 3))
    if at_edge:
        optimizer.end_epoch()
    other = balanced(resumed, "cggm", **options)
    other.load_state_dict(reloaded(optimizer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))

    rest = batches(model, 3, seed=2)
    assert_same(train(resumed, other, rest), train(model, optimizer, rest))
    assert all(value.isfinite().all() for value in weights(model).values())
    assert_same_state(other.state_dict(), optimizer.state_dict())


def test_the_state_of_the_probes_matters_for_the_rest_of_the_run() -> None:
    model, resumed = multimodal(), multimodal()
    optimizer, other = balanced(model, "cggm"), balanced(resumed, "cggm")
    train(model, optimizer, batches(model, 3))
    saved = reloaded(optimizer.state_dict())
    saved["modbalance"]["methods"]["cggm"]["guides"]["weights"]["a"]["out_layer.weight"] += 1
    other.load_state_dict(saved)
    resumed.load_state_dict(model.state_dict())
    rest = batches(model, 3, seed=2)
    train(resumed, other, rest)
    train(model, optimizer, rest)
    assert not torch.equal(weights(resumed)["fusion.fc_out.weight"], weights(model)["fusion.fc_out.weight"])


def test_a_state_saved_before_the_first_batch_and_one_saved_after_it() -> None:
    model, resumed = multimodal(), multimodal()
    optimizer, other = balanced(model, "cggm"), balanced(resumed, "cggm")
    data = batches(model, 3)
    fresh = reloaded(optimizer.state_dict())
    train(resumed, other, data)
    other.load_state_dict(fresh)
    resumed.load_state_dict(multimodal().state_dict())
    other._inner.state.clear()
    assert_same(train(resumed, other, data), train(model, optimizer, data))


def test_the_state_of_other_probes_is_refused_and_changes_nothing() -> None:
    model = multimodal(head="film")
    optimizer = balanced(model, "cggm", probes="mlp")
    train(model, optimizer, batches(model, 1))
    for chosen in ("linear", {name: nn.Linear(4, 3) for name in "ab"}):
        other = balanced(multimodal(head="film"), "cggm", probes=chosen)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(CheckpointError, match=r"probes.*shapes"):
            other.load_state_dict(optimizer.state_dict())
        assert_same_state(other.state_dict(), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_go_on_alike(copied: Any) -> None:
    model = multimodal()
    optimizer = balanced(model, "cggm")
    train(model, optimizer, batches(model, 2))
    other, twin = copied((model, optimizer))
    rest = batches(model, 2, seed=5)
    assert_same(train(other, twin, rest), train(model, optimizer, rest))


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("probes", [*KINDS, norm_probe])
def test_a_dry_run_is_bitwise_the_inner_optimizer(probes: Any, preset: str) -> None:
    model, plain = multimodal(), multimodal()
    optimizer = balanced(model, "cggm", probes=probes, preset=preset, dry_run=True)
    before = torch.get_rng_state()
    train(model, optimizer, batches(model, 4))
    assert torch.equal(torch.get_rng_state(), before), "the user's random stream"
    assert_same(model, train(plain, sgd(plain), batches(plain, 4)))


def test_dropout_of_probes_differs_between_steps_and_micro_batches() -> None:
    seen: list[Tensor] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(F.dropout(torch.ones(64), 0.5))
            return super().forward(x)

    model = multimodal()
    optimizer = balanced(model, "cggm", probes={name: Watched(4, 3) for name in "ab"})
    criterion = optimizer.criterion(LOSS)
    for inputs, target in batches(model, 2):
        optimizer.zero_grad()
        for _ in range(2):
            criterion(model(*inputs), target).backward()
        optimizer.step()
    assert len({tuple(mask.tolist()) for mask in seen}) == len(seen) == 8


@pytest.mark.parametrize("probes", ["linear", norm_probe])
def test_a_step_that_never_happens_leaves_no_trace(probes: Any) -> None:
    model = multimodal()
    optimizer = balanced(model, "cggm", probes=probes)
    train(model, optimizer, batches(model, 2))
    before = copy.deepcopy(optimizer.state_dict())
    inputs, target = batches(model, 1, seed=3)[0]
    optimizer.zero_grad()
    optimizer.criterion(LOSS)(model(*inputs), target).backward()
    optimizer.modulate()  # and a GradScaler that skips the step
    assert_same_state(optimizer.state_dict(), before)


# What it touches


def test_the_loss_is_the_task_loss_and_only_encoders_and_head_weight_change() -> None:
    model, plain = (multimodal("abc", dtype=torch.float64) for _ in range(2))
    optimizer = balanced(model, "cggm", rho=1.3)
    first, second = batches(model, 2, dtype=torch.float64)
    train(model, optimizer, [first])
    plain.load_state_dict(model.state_dict())
    optimizer.zero_grad()
    loss = optimizer.criterion(LOSS)(model(*second[0]), second[1])
    expected = LOSS(plain(*second[0]), second[1])
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    optimizer.modulate()
    with pytest.warns(ModbalanceWarning) if _is_large(optimizer) else nullcontext():
        coefficients = {name: optimizer.metrics()[f"cggm/coefficient/{name}"] for name in "abc"}
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        if name.startswith("encoders"):
            torch.testing.assert_close(ours.grad, theirs.grad * coefficients[name.split(".")[1]], rtol=1e-6, atol=0)
        else:
            assert torch.equal(ours.grad, theirs.grad) == (name != "fusion.fc_out.weight"), name


def test_the_term_of_gradients_appears_in_the_loss_and_by_name() -> None:
    model, plain = multimodal(), multimodal()
    optimizer = balanced(model, "cggm", preset="paper", lam=0.5, coeff_clip=(0, 1))
    inputs, target = batches(model, 1)[0]
    loss = optimizer.criterion(LOSS)(model(*inputs), target)
    added = (loss - LOSS(plain(*inputs), target)).item()
    assert added != 0
    assert optimizer.metrics()["cggm/loss/l_gm"] == pytest.approx(added, abs=1e-6)


def test_probes_run_in_single_precision_outside_of_autocast() -> None:
    seen: list[torch.dtype] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.extend([x.dtype, super().forward(x).dtype])
            return super().forward(x)

    model = multimodal()
    optimizer = balanced(model, "cggm", probes={name: Watched(4, 3) for name in "ab"})
    inputs, target = batches(model, 1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(*inputs)
        loss = optimizer.criterion(LOSS)(logits, target)
    loss.backward()
    optimizer.step()
    assert logits.dtype == torch.bfloat16
    assert set(seen) == {torch.float32}


def test_samples_that_lack_a_modality_count_in_nothing_of_it() -> None:
    inputs, target = batches(multimodal(), 1, size=6)[0]
    there = torch.tensor([True, False, True, True, False, True])

    def step(rows: Tensor, **given: Any) -> tuple[dict[str, float], dict[str, nn.Module]]:
        model = multimodal()
        optimizer = balanced(model, "cggm", probe_optimizer=slow, coeff_clip=(0, 1))
        optimizer.criterion(LOSS)(model(*(x[rows] for x in inputs)), target[rows], **given).backward()
        optimizer.step()
        return optimizer.metrics(), probes_of(optimizer)

    masked, probes = step(torch.ones(6, dtype=torch.bool), present={"a": there})
    alone, expected = step(there)
    assert masked["cggm/metric/a"] == alone["cggm/metric/a"]
    assert_close(probes["a"], expected["a"], 1e-7)
    with pytest.raises(AssertionError, match="differs"):
        assert_close(probes["b"], expected["b"], 1e-7)


def test_probes_are_outside_of_the_model_and_of_the_inner_optimizer() -> None:
    model = multimodal()
    optimizer = balanced(model, "cggm")
    train(model, optimizer, batches(model, 1))
    ours = {id(p) for probe in probes_of(optimizer).values() for p in probe.parameters()}
    assert not ours & {id(p) for p in model.parameters()}
    assert not ours & {id(p) for group in optimizer.param_groups for p in group["params"]}


# What may be missing


@pytest.mark.filterwarnings(ANY_LARGE)
@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("frozen", ["encoders.a", "fusion", "fusion.fc_out.weight"])
def test_frozen_parts_stay_and_the_rest_trains(frozen: str, preset: str) -> None:
    model = multimodal("abc")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    before = weights(model)
    optimizer = balanced(model, "cggm", preset=preset)
    train(model, optimizer, batches(model, 3))
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name
        assert value.isfinite().all()


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("size", [0, 1])
def test_a_batch_of_one_and_an_empty_batch(size: int, preset: str) -> None:
    model = multimodal()
    optimizer = balanced(model, "cggm", preset=preset)
    criterion = optimizer.criterion(nn.CrossEntropyLoss(reduction="sum"))
    for inputs, target in batches(model, 3, size=size):
        optimizer.zero_grad()
        criterion(model(*inputs), target).backward()
        optimizer.step()
    assert all(value.isfinite().all() for value in weights(model).values())
    if size == 0:
        metrics = optimizer.metrics()
        assert (metrics["cggm/coefficient/a"], metrics["cggm/nonfinite/a"]) == (1, 3)
        assert method_of(optimizer).epsilon is not None
        assert torch.equal(method_of(optimizer).epsilon, torch.zeros(2, dtype=torch.float64))  # type: ignore[arg-type]


def test_metrics_that_are_not_finite_leave_encoders_and_head_alone_and_are_counted() -> None:
    model, plain = multimodal(), multimodal()
    optimizer = balanced(model, "cggm", metric=lambda logits, target: (torch.nan, 1), direction_delay=0)
    data = batches(model, 2)
    optimizer._clip_grad_norm = None
    train(model, optimizer, data)
    assert_same(model, train(plain, sgd(plain), data))
    metrics = optimizer.metrics()
    assert (metrics["cggm/coefficient/a"], metrics["cggm/nonfinite/b"]) == (1, 2)


@pytest.mark.parametrize("direction", ["weight", "gradient"])
def test_a_probe_that_went_astray_does_not_take_the_head_along(direction: str) -> None:
    model = multimodal()
    probes = {name: nn.Linear(4, 3) for name in "ab"}
    optimizer = balanced(model, "cggm", probes=probes, direction=direction, direction_delay=0)
    nn.init.constant_(probes["a"].weight, torch.nan)
    train(model, optimizer, batches(model, 2))
    assert all(value.isfinite().all() for value in weights(model).values())


def step_with(a: int, b: int, n: int = 64, **options: Any) -> BalancedOptimizer:
    """Take one step in which the probes get ``a`` and ``b`` of ``n`` samples more right than in the one before."""
    hits = iter([n // 2, n // 2, n // 2 + a, n // 2 + b])
    model = multimodal()
    optimizer = balanced(model, "cggm", metric=lambda logits, target: (next(hits), n), **options)
    train(model, optimizer, batches(model, 2))
    return optimizer


def test_improvements_that_cancel_out_blow_up_are_counted_and_warned_of_once() -> None:
    optimizer = step_with(1, -1, rho=1.0)
    with pytest.warns(ModbalanceWarning, match=r"went above 100.*clip_grad_norm.*"):
        metrics = optimizer.metrics()
    assert metrics["cggm/coefficient/a"] == pytest.approx(-1 / 64e-8, rel=1e-6)
    assert metrics["cggm/coefficient/b"] == pytest.approx(1 / 64e-8, rel=1e-6)
    assert metrics["cggm/large/a"] == metrics["cggm/large/b"] == 1
    assert optimizer.metrics() == metrics


def test_bounds_of_the_coefficient() -> None:
    metrics = step_with(1, -1, rho=2.0, coeff_clip=(-0.5, 1.5)).metrics()
    assert (metrics["cggm/coefficient/a"], metrics["cggm/coefficient/b"]) == (-1, 3)
    assert metrics["cggm/large/a"] == 0


def test_no_improvement_at_all_gives_rho() -> None:
    metrics = step_with(0, 0, rho=1.3).metrics()
    assert metrics["cggm/coefficient/a"] == metrics["cggm/coefficient/b"] == pytest.approx(1.3)


def test_a_user_may_undo_the_clip_of_the_preset() -> None:
    assert balanced(multimodal(), "cggm")._clip_grad_norm == 0.8
    assert balanced(multimodal(), "cggm", clip_grad_norm=5.0)._clip_grad_norm == 5.0
    assert balanced(multimodal(), "cggm", preset="paper")._clip_grad_norm is None


# Shapes


def test_probes_of_another_shape_are_refused_at_construction() -> None:
    model = multimodal(head="film")
    with pytest.raises(ConfigError, match=r"\(3, 4\).*\(3, 7\).*probes='mlp'.*`head=`.*`lam=0`"):
        balanced(model, "cggm", probes={name: nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 3)) for name in "ab"})
    with pytest.raises(ConfigError, match=r"\(3, 8\).*\(3, 4\)"):
        balanced(multimodal(head="mlp"), "cggm", feature_sizes=[4, 4])


def test_probes_of_another_shape_are_refused_on_the_first_batch_and_the_ways_out_work() -> None:
    data = batches(multimodal(head="mlp"), 2)
    with pytest.raises(ConfigError, match=r"\(3, 8\).*\(3, 4\)"):
        train(model := multimodal(head="mlp"), balanced(model, "cggm"), data)
    head = "encoders.a.2"
    for options in ({"probes": "mlp"}, {"probes": "transformer"}, {"lam": 0}):
        model = multimodal(head="mlp")
        train(model, balanced(model, "cggm", **options), data)
    model = multimodal(head="mlp")
    shaped = {name: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Flatten()) for name in "ab"}
    assert balanced(model, "cggm", probes=shaped, head=head)


def test_hidden_layers_as_wide_as_slices_of_the_concatenation_are_no_slices() -> None:
    model = multimodal()
    wide = {"a": nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), "b": nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))}
    optimizer = balanced(model, "cggm", probes=wide)
    with pytest.raises(ConfigError, match=r"\(3, 8\)"):
        train(model, optimizer, batches(model, 1))


def test_a_probe_with_outputs_of_another_shape_is_named() -> None:
    model = multimodal()
    optimizer = balanced(model, "cggm", lam=0, probes={name: nn.Linear(4, 2) for name in "ab"})
    with pytest.raises(ConfigError, match=r"probe of 'a'.*\(6, 3\).*\(6, 2\)"):
        train(model, optimizer, batches(model, 1))


# Probes by kind of feature and task


@over_kinds
@pytest.mark.parametrize("shape", [(2, 4), (2, 7, 4), (2, 4, 5, 6)])
@pytest.mark.parametrize("like", [(2, 3), (2,), (2, 3, 8), (2, 3, 8, 9)])
def test_shapes_of_built_in_probes(probes: str, shape: tuple[int, ...], like: tuple[int, ...]) -> None:
    if len(like) > 2 and len(like) != len(shape):
        return
    outputs = like[1] if len(like) > 1 else 1
    probe = Probe(probes, 4, 10, outputs)
    assert probe(torch.randn(shape), torch.empty(like)).shape == like
    assert probe.out_layer.weight.shape == (outputs, 4 if probes == "linear" else 10)


@pytest.mark.filterwarnings(ANY_LARGE)
@pytest.mark.parametrize("names", ["ab", "abcd"])
@pytest.mark.parametrize("regions", [((1,), (2,), (3,)), ((3,), (1, 3), (1, 2, 3))])
def test_segmentation(names: str, regions: tuple[tuple[int, ...], ...]) -> None:
    model = Segmenter(names).double()
    before = weights(model)
    optimizer = balanced_maps(
        model, metric=partial(mean_dice, regions=regions), probe_optimizer=lambda p: SGD(p, lr=0.5)
    )
    data = map_batches(names, 1) * 30
    train(model, optimizer, data)
    metrics = optimizer.metrics()
    assert all(0 < metrics[f"cggm/metric/{name}"] <= 1 for name in names)
    assert all(metrics[f"cggm/probe_loss/{name}"] < 1.4 for name in names)
    assert not any(torch.equal(value, before[name]) for name, value in weights(model).items())


def balanced_maps(model: Segmenter, **options: Any) -> BalancedOptimizer:
    return BalancedOptimizer(sgd(model), "cggm", model=model, modalities=model.paths, fusion="fusion", **options)


def test_metrics_leave_out_what_does_not_count() -> None:
    logits, target = torch.tensor([[2.0, 1], [0, 1], [3, 1], [1, 0]]), torch.tensor([0, 1, 1, -100])
    assert [x.item() for x in measure("accuracy", logits, target)] == [2, 3]
    there = torch.tensor([False, True, True, True])
    assert [x.item() for x in measure("accuracy", logits, target, there)] == [1, 2]
    assert [x.item() for x in measure("accuracy", logits, F.one_hot(target.clamp(min=0)).float())] == [3, 4]
    values, wanted = torch.tensor([[1.0], [-1], [0], [2]]), torch.tensor([[3.0], [1], [0], [-1]])
    assert [x.item() for x in measure("sign", values, wanted)] == [2, 4]
    assert [x.item() for x in measure("sign", values, wanted, there)] == [1, 3]
    with pytest.raises(ConfigError, match="cannot leave out"):
        measure(lambda logits, target: (0, 1), values, wanted, there)


def test_targets_that_do_not_fit_the_metric_are_named() -> None:
    model = multimodal()
    inputs, _ = batches(model, 1)[0]
    for metric, target, said in [
        ("accuracy", torch.randn(6, 3, 1), "metric='sign'"),
        ("sign", torch.zeros(6), r"\(6, 3\)"),
    ]:
        criterion = balanced(model, "cggm", metric=metric).criterion(lambda logits, target: logits.sum())
        with pytest.raises(ConfigError, match=said):
            criterion(model(*inputs), target)


# Options, and the model-free form


@pytest.mark.parametrize(
    "options",
    [
        {"rho": 0},
        {"lam": -0.1},
        {"probes": "quadratic"},
        {"probes": {"a": 3}},
        {"probe_optimizer": 0.1},
        {"metric": "f1"},
        {"metric": "dice_brats"},
        {"head": 3},
        {"direction": "sideways"},
        {"direction_delay": 2},
        {"coeff_clip": (1, 0)},
        {"coeff_clip": 3},
        {"metric_ema": 1.5},
        {"probe_eval": "yes"},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"`{name}`"):
        balanced(multimodal(), "cggm", **options)


def test_the_error_for_a_metric_without_a_name_names_the_fix() -> None:
    with pytest.raises(ConfigError, match=r"'accuracy', 'sign', or a callable \(logits, target\) -> .*Found .*'dice'"):
        balanced(multimodal(), "cggm", metric="dice")


def test_probes_for_other_modalities_or_without_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['a', 'b'\].*\['a', 'c'\]"):
        balanced(multimodal(), "cggm", probes={name: nn.Linear(4, 3) for name in "ac"})
    with pytest.raises(ConfigError, match=r"probe of 'a'.*parameters"):
        balanced(multimodal(), "cggm", lam=0, probes={name: nn.Identity() for name in "ab"})


def test_a_head_without_weight_and_a_wrong_path_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Option `head`.*Tanh"):
        balanced(multimodal(), "cggm", head="encoders.a.1")
    with pytest.raises(ConfigError, match=r"Option `head`.*fusion.fc_out"):
        balanced(multimodal(), "cggm", head="fusion.fc_oud")


def test_a_head_that_the_loss_does_not_see_is_refused_where_it_is_differentiated() -> None:
    model = multimodal(head="film")
    optimizer = balanced(model, "cggm", head=nn.Linear(4, 3), direction="gradient")
    with pytest.raises(ConfigError, match=r"`head`.*loss depends on"):
        train(model, optimizer, batches(model, 1))


def groups(model: Multimodal) -> list[dict[str, Any]]:
    encoders = [{"params": list(model.encoders[name].parameters()), "modality": name} for name in "ab"]
    return [*encoders, {"params": list(model.fusion.parameters())}]


def test_the_model_free_form_equals_that_with_the_model() -> None:
    model, other = multimodal(), multimodal()
    optimizer = BalancedOptimizer(SGD(groups(model), lr=0.1), "cggm", head=model.fusion)
    criterion = optimizer.criterion(LOSS)
    data = batches(model, 3)
    for inputs, target in data:
        optimizer.zero_grad()
        features = {name: model.encoders[name](x) for name, x in zip("ab", inputs, strict=True)}
        criterion(model.fusion(*features.values()), target, features=features).backward()
        optimizer.step()
    train(other, balanced(other, "cggm", SGD(other.parameters(), lr=0.1)), data)
    assert_close(model, other, 1e-7)


def test_the_model_free_form_says_what_it_needs() -> None:
    model = multimodal()
    inner = SGD(groups(model), lr=0.1)
    with pytest.raises(ConfigError, match=r"`head=`.*`lam=0`"):
        BalancedOptimizer(inner, "cggm")
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ObservationError, match=r"features=\{"):
        BalancedOptimizer(inner, "cggm", lam=0).criterion(LOSS)(model(*inputs), target)


def test_a_loss_that_is_computed_already_is_refused() -> None:
    model = multimodal()
    optimizer = balanced(model, "cggm")
    inputs, target = batches(model, 1)[0]
    logits = model(*inputs)
    with pytest.raises(ObservationError, match=r"task loss.*opt\.criterion"):
        optimizer.observe(LOSS(logits, target), logits=logits, target=target)


def test_adam_of_the_user_and_the_default() -> None:
    model = multimodal()
    optimizer = balanced(model, "cggm", probe_optimizer=lambda parameters: Adam(parameters, lr=5e-4))
    reference_model = multimodal()
    reference = balanced(reference_model, "cggm")
    data = batches(model, 3)
    train(model, optimizer, data)
    train(reference_model, reference, data)
    for name, probe in probes_of(optimizer).items():
        assert_close(probe, probes_of(reference)[name], 1e-7)


def _is_large(optimizer: BalancedOptimizer) -> bool:
    counters = optimizer._lifecycle.training.telemetry._counters
    return any(bool(value) for key, value in counters.items() if "/large/" in key)


# One differentiation for all probes


def test_probes_that_share_a_layer_take_each_gradient_from_its_own_loss() -> None:
    """The optimizer's last word is that of the last modality, as for probes one by one."""
    shared = nn.Linear(4, 3)
    model = multimodal()
    optimizer = balanced(model, "cggm", probes={"a": shared, "b": shared}, probe_optimizer=slow_once, lam=0)
    inputs, target = batches(model, 1)[0]
    z = model.encoders["b"](inputs[1]).detach()
    expected = torch.autograd.grad(LOSS(shared(z), target), shared.weight)[0]
    before = shared.weight.detach().clone()
    train(model, optimizer, [(inputs, target)])
    torch.testing.assert_close(shared.weight.detach(), before - 0.05 * expected)


@pytest.mark.parametrize(("probes", "draws"), [("linear", False), ("mlp", False), ("transformer", True)])
def test_random_state_is_forked_for_probes_that_may_draw(
    probes: str, draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = multimodal()
    optimizer = balanced(model, "cggm", probes=probes)
    one, two = batches(model, 2)
    train(model, optimizer, [one])
    forks: list[object] = []
    fork = torch.random.fork_rng

    def counted(*args: Any) -> Any:
        forks.append(args)
        return fork(*args)

    monkeypatch.setattr(torch.random, "fork_rng", counted)
    train(model, optimizer, [two])
    assert bool(forks) is draws


def test_modules_of_the_user_may_draw() -> None:
    model = multimodal()
    optimizer = balanced(model, "cggm", probes={"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    built = method_of(optimizer)._built
    assert built is not None
    assert built.may_draw
