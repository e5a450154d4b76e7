"""MLA: edge cases, missing modalities, evaluation, composition and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, SGD

from contract.test_conformance import OPTIONS
from modbalance import BalancedOptimizer, ConfigError
from modbalance._measure import measure
from modbalance._plugins import load_method
from modbalance.testing._rules_state import Halving
from modbalance_mla import MLA, SharedHead, projection
from modbalance_mla.weights import fused
from support.models import AudioVisual, Multimodal, SharedFusion
from support.operation_counts import READS, CountOps
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
PROJECTED: dict[str, Any] = {"projection": "rls", "steps_per_epoch": 4}


def shared(names: str = "ab", dtype: torch.dtype = torch.float32) -> Multimodal:
    return multimodal(names, "shared", dtype=dtype)


def reference() -> AudioVisual:
    return audio_visual(lambda: SharedFusion(8, 6))


def state_of(optimizer: BalancedOptimizer) -> dict[str, Any]:
    found: dict[str, Any] = optimizer.state_dict()["modbalance"]["methods"]["mla"]
    return found


# Steps


def test_the_head_is_stepped_by_its_copy_alone() -> None:
    model = shared()
    optimizer = balanced(model, "mla")
    criterion = optimizer.criterion(LOSS)
    ((inputs, target),) = batches(model, 1)
    before = weights(model)
    criterion(model(*inputs), target).backward()
    assert all(not p.grad.any() for p in model.fusion.parameters() if p.grad is not None)
    assert_same(weights(model), before)
    optimizer.modulate()
    assert all(p.grad is None for p in model.fusion.parameters())
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("projection", ["off", "rls"])
def test_a_step_that_a_scaler_skips_leaves_head_and_projection_as_they_were(projection: str) -> None:
    model = shared()
    optimizer = balanced(model, "mla", projection=projection)
    criterion = optimizer.criterion(LOSS)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    first, (inputs, target) = batches(model, 2)
    train(model, optimizer, [first], criterion)
    before, state = weights(model), state_of(optimizer)
    optimizer.zero_grad()
    scaler.scale(criterion(model(*inputs), target)).backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None
    gradient.fill_(torch.inf)
    scaler.step(optimizer)
    assert_same(weights(model), before)
    assert state_of(optimizer)["calls"] == state["calls"] == 2
    if projection == "rls":
        assert torch.equal(state_of(optimizer)["P"], state["P"])


def test_a_scaler_skips_an_overflow_that_reaches_no_encoder() -> None:
    model = shared()
    model.encoders["b"].requires_grad_(False)
    optimizer = balanced(model, "mla")
    criterion = optimizer.criterion(LOSS)
    scaler = GradScaler("cpu", init_scale=8.0)
    (inputs, target), later = batches(model, 2)
    before = weights(model)
    optimizer.zero_grad()
    scaler.scale(criterion(model(inputs[0], inputs[1] * torch.inf), target)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert_same(weights(model), before)
    train(model, optimizer, [later], criterion)
    assert all(value.isfinite().all() for value in weights(model).values())


def test_the_scale_of_a_scaler_reaches_encoders_and_not_the_head() -> None:
    plain, scaled = (shared(dtype=torch.float64) for _ in range(2))
    data = batches(plain, 3, dtype=torch.float64)
    train(plain, balanced(plain, "mla"), data)
    optimizer, scaler = balanced(scaled, "mla"), GradScaler("cpu", init_scale=2.0**10)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in data:
        optimizer.zero_grad()
        scaler.scale(criterion(scaled(*inputs), target)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_close(scaled, plain, 1e-12)


def test_a_head_on_frozen_encoders_learns() -> None:
    model = shared()
    model.encoders.requires_grad_(False)
    before = weights(model)
    train(model, balanced(model, "mla"), batches(model, 2))
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"fusion.fc_out.weight", "fusion.fc_out.bias"}


class Noisy(nn.Module):
    """A head with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.layers(z)
        return out


@pytest.mark.parametrize("options", [{}, {"projection": "elementwise"}])
def test_buffers_and_random_numbers_are_those_of_the_forward_alone(options: dict[str, Any]) -> None:
    models = []
    for method in ("mla", "none"):
        model = shared()
        torch.manual_seed(0)
        model.fusion = SharedHead(Noisy())
        further = {"head": "fusion.head", **options} if method == "mla" else {}
        torch.manual_seed(1)
        train(model, balanced(model, method, **further), batches(model, 1))
        models.append((model, torch.get_rng_state()))
    (ours, state), (bare, other) = models
    assert torch.equal(state, other)
    for (name, buffer), value in zip(ours.named_buffers(), bare.buffers(), strict=True):
        assert torch.equal(buffer, value), name


def test_a_length_of_the_epoch_that_is_too_short_does_not_let_alpha_vanish() -> None:
    assert projection.rate(0, 5) == pytest.approx(0.1)
    assert projection.rate(5, 5) == projection.rate(50, 5) == pytest.approx(0.01)
    assert projection.rate(50, None) == 0.1


def test_the_index_of_the_batch_begins_anew_in_each_epoch() -> None:
    model = shared()
    optimizer = balanced(model, "mla", **PROJECTED)
    for _ in range(2):
        train(model, optimizer, batches(model, 3))
        assert state_of(optimizer)["index"] == 3
        optimizer.end_epoch()
    assert state_of(optimizer)["calls"] == 12


def test_without_projection_there_is_no_matrix() -> None:
    model = shared()
    optimizer = balanced(model, "mla")
    train(model, optimizer, batches(model, 2))
    assert state_of(optimizer)["P"] is None


def test_small_denominators_are_counted() -> None:
    model = shared()
    optimizer = balanced(model, "mla", projection="elementwise")
    train(model, optimizer, batches(model, 8))
    P, r = torch.eye(2), torch.tensor([1.0, -0.1])
    _, is_small = projection.updated(P, r, 0.1, "elementwise")  # .1 - 1 * .1 = 0
    assert bool(is_small)
    _, is_small = projection.updated(P, r.abs(), 0.1, "elementwise")
    assert not bool(is_small)
    assert optimizer.metrics()["mla/small_denominators"] >= 0


def test_a_denominator_of_zero_leaves_the_projection_as_it_was() -> None:
    P = torch.eye(2)
    new, is_small = projection.updated(P, torch.tensor([-0.1, 1.0]), 0.1, "elementwise")
    assert bool(is_small)
    assert torch.equal(new, P)
    new, is_small = projection.updated(P, torch.full((2,), torch.nan), 0.1, "rls")
    assert bool(is_small)
    assert torch.equal(new, P)


def test_a_mean_feature_of_zero_only_normalises() -> None:
    P, _ = projection.updated(2 * torch.eye(3), torch.zeros(3), 0.1, "elementwise")
    torch.testing.assert_close(P, torch.eye(3) / 3**0.5)


@pytest.mark.parametrize("options", [{}, {"projection": "elementwise", "idle": "coast"}, PROJECTED])
def test_no_host_reads(options: dict[str, Any]) -> None:
    counts = []
    for method, chosen in (("mla", options), ("none", {})):
        model = reference()
        optimizer = balanced(model, method, **chosen)
        *warm_up, last = batches(model, 3)
        train(model, optimizer, warm_up)
        with CountOps() as counted:
            train(model, optimizer, [last])
        counts.append(counted.ops)
    assert not READS & (counts[0] - counts[1]).keys()


def test_a_step_adds_few_operations() -> None:
    assert measure(MLA).operations_added <= 44


def test_steps_run_on_tensors_without_values() -> None:
    def build(model: AudioVisual) -> BalancedOptimizer:
        model.fusion_module = SharedFusion(8, 6)
        return balanced(model, "mla", **PROJECTED)

    assert steps_on_fake_tensors(build) == 2


# Missing modalities


def present_of(**masks: list[bool]) -> dict[str, Tensor]:
    return {name: torch.tensor(mask) for name, mask in masks.items()}


@pytest.mark.parametrize("options", [{}, {"projection": "rls"}])
def test_samples_without_a_modality_count_in_nothing_of_it(options: dict[str, Any]) -> None:
    """As with batches of other sizes: the loss of a modality is the mean over the samples that have it."""
    ours, theirs = (shared(dtype=torch.float64) for _ in range(2))
    optimizer = balanced(ours, "mla", **options)
    criterion = optimizer.criterion(LOSS)
    there = torch.tensor([True, True, False, True, True, True])
    data = batches(ours, 3, dtype=torch.float64)
    for inputs, target in data:
        optimizer.zero_grad()
        criterion(ours(*inputs), target, present={"b": there}).backward()
        optimizer.step()

    inner, head, P, calls = sgd(theirs), theirs.fusion.get_submodule("fc_out"), torch.eye(4, dtype=torch.float64), 0
    for inputs, target in data:
        rows: dict[str, Any] = {"a": slice(None), "b": there}
        z = {name: theirs.encoders[name](x) for name, x in zip("ab", inputs, strict=True)}
        for name, keep in rows.items():
            inner.zero_grad()
            F.cross_entropy(head(z[name][keep]), target[keep]).backward()
            if options and calls:
                P, _ = projection.updated(P, z[name][keep].mean(0).detach(), 0.1, "rls")
                gradient = head.get_parameter("weight").grad
                assert gradient is not None
                gradient.copy_(gradient @ P.T)
            inner.step()
            calls += 1
    assert_close(ours, theirs, 1e-12)


def test_a_modality_that_nobody_has_leaves_the_head_its_momentum_and_the_projection() -> None:
    both, one = (shared(dtype=torch.float64) for _ in range(2))
    nobody = {"b": torch.zeros(6, dtype=torch.bool)}
    ends = []
    for model in (both, one):
        optimizer = balanced(model, "mla", SGD(model.parameters(), lr=0.1, momentum=0.9), projection="elementwise")
        criterion = optimizer.criterion(LOSS)
        for index, (inputs, target) in enumerate(batches(model, 3, dtype=torch.float64)):
            optimizer.zero_grad()
            # In the second model samples of `b` differ, which must not matter.
            inputs = inputs if model is both else (inputs[0], inputs[1] + index)
            criterion(model(*inputs), target, present=nobody).backward()
            optimizer.step()
        ends.append(state_of(optimizer)["P"])
    assert torch.equal(*ends)
    assert_same(weights(both), weights(one))


def test_a_sum_needs_no_other_weight() -> None:
    ours, theirs = (shared(dtype=torch.float64) for _ in range(2))
    there = torch.tensor([True, False, True, True, False, True])
    ((inputs, target),) = batches(ours, 1, dtype=torch.float64)
    optimizer = balanced(ours, "mla", SGD(ours.parameters(), lr=0.01))
    optimizer.criterion(nn.CrossEntropyLoss(reduction="sum"))(ours(*inputs), target, present={"a": there}).backward()
    optimizer.step()
    inner, head = SGD(theirs.parameters(), lr=0.01), theirs.fusion.get_submodule("fc_out")
    z = [phi(x) for phi, x in zip(theirs.encoders.values(), inputs, strict=True)]
    rows: list[Any] = [there, slice(None)]
    for z_m, keep in zip(z, rows, strict=True):
        inner.zero_grad()
        F.cross_entropy(head(z_m[keep]), target[keep], reduction="sum").backward()
        inner.step()
    assert_close(ours, theirs, 1e-12)


# Tasks and heads


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.L1Loss(reduction="sum")])
def test_losses_of_numbers_and_labels(loss: nn.Module) -> None:
    model = shared()
    optimizer = balanced(model, "mla", **PROJECTED)
    criterion = optimizer.criterion(
        loss, score="multilabel" if isinstance(loss, nn.BCEWithLogitsLoss) else "regression"
    )
    before = weights(model)
    data = [(inputs, F.one_hot(target, 3).float()) for inputs, target in batches(model, 3)]
    train(model, optimizer, data, criterion)
    assert all(not torch.equal(value, before[name]) for name, value in weights(model).items())
    model.eval()
    inputs, target = data[0]
    assert criterion(model(*inputs), target).isfinite()


class Maps(nn.Module):
    """Two encoders of pictures, and one convolution for the map of each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Conv2d(1, 4, 3, padding=1) for name in "ab"})
        self.fusion = SharedHead(nn.Conv2d(4, 3, 1))

    def forward(self, *inputs: Tensor) -> Tensor:
        maps = [phi(x) for phi, x in zip(self.encoders.values(), inputs, strict=True)]
        logits: Tensor = self.fusion(*maps)
        return logits


def test_maps_of_classes() -> None:
    model = Maps()
    paths = {name: f"encoders.{name}" for name in "ab"}
    optimizer = BalancedOptimizer(
        sgd(model), "mla", model=model, modalities=paths, fusion="fusion", eval_weights="sample_entropy"
    )
    criterion = optimizer.criterion(LOSS)
    inputs, target = (torch.randn(2, 1, 5, 5), torch.randn(2, 1, 5, 5)), torch.randint(3, (2, 5, 5))
    before = weights(model)
    train(model, optimizer, [(inputs, target)] * 2, criterion)
    assert all(not torch.equal(value, before[name]) for name, value in weights(model).items())
    model.eval()
    assert criterion.logits(model(*inputs)).shape == (2, 3, 5, 5)


def test_a_shared_head_weighs_its_logits() -> None:
    head = nn.Linear(4, 3)
    z = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(SharedHead(head)(*z), (head(z[0]) + head(z[1])) / 2)
    torch.testing.assert_close(SharedHead(head, [0.9, 0.2])(*z), 0.9 * head(z[0]) + 0.2 * head(z[1]))


# Evaluation


def test_weights_by_modality() -> None:
    o = {"a": torch.ones(2, 3), "b": 2 * torch.ones(2, 3)}
    torch.testing.assert_close(fused(o, "fixed", None), torch.full((2, 3), 0.55 + 2 * 0.45))
    torch.testing.assert_close(fused(o, "fixed", {"b": 1.0, "a": 0.5}), torch.full((2, 3), 2.5))
    four = {name: torch.full((2, 3), float(index)) for index, name in enumerate("abcd")}
    torch.testing.assert_close(fused(four, "fixed", None), torch.full((2, 3), 1.5))


@pytest.mark.parametrize("how", ["batch_entropy", "sample_entropy"])
def test_probabilities_that_underflow_have_an_entropy(how: str) -> None:
    o = {"a": torch.tensor([[400.0, 0.0], [0.0, 400.0]]), "b": torch.zeros(2, 2)}
    found = fused(o, how, None)
    assert found.isfinite().all()
    assert (found.argmax(1) == torch.tensor([0, 1])).all()


@pytest.mark.parametrize("how", ["batch_entropy", "sample_entropy"])
def test_masked_classes_have_no_entropy(how: str) -> None:
    o = {name: torch.randn(4, 3) for name in "ab"}
    masked = {name: torch.cat([each, torch.full((4, 1), -torch.inf)], 1) for name, each in o.items()}
    torch.testing.assert_close(fused(masked, how, None)[:, :3], fused(o, how, None))


def test_entropies_by_sample_do_not_depend_on_the_batch_and_those_by_batch_do() -> None:
    o = {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}
    first = {name: each[:2] for name, each in o.items()}
    torch.testing.assert_close(fused(o, "sample_entropy", None)[:2], fused(first, "sample_entropy", None))
    assert not torch.allclose(fused(o, "batch_entropy", None)[:2], fused(first, "batch_entropy", None))
    alone = {name: each[:1] for name, each in o.items()}
    torch.testing.assert_close(fused(alone, "batch_entropy", None), sum(alone.values()) / 2)


def test_an_evaluation_within_a_step_leaves_the_step_alone() -> None:
    ours, theirs = shared(), shared()
    data = batches(ours, 3)
    train(theirs, balanced(theirs, "mla", **PROJECTED), data)
    optimizer = balanced(ours, "mla", **PROJECTED)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in data:
        optimizer.zero_grad()
        criterion(ours(*inputs), target).backward()
        ours.eval()
        with torch.no_grad():
            criterion(ours(*inputs), target)
        ours.train()
        optimizer.step()
    assert_same(ours, theirs)


# Composition


@pytest.mark.parametrize("other", ["ogm", "ogm_ge", "mslr", "mses", "relearning"])
@pytest.mark.parametrize("first", [True, False])
def test_both_methods_act(other: str, first: bool) -> None:
    both, alone = shared(), shared()
    data = batches(both, 4)
    loader = [(*inputs, target) for inputs, target in data]
    options = dict(OPTIONS[other][0]) | ({"param_filter": "all"} if other.startswith("ogm") else {})
    pair = [load_method("mla").configure(), load_method(other).configure(**options)]
    optimizer, single = balanced(both, pair if first else pair[::-1]), balanced(alone, "mla")
    for _ in range(3):
        train(both, optimizer, data)
        train(alone, single, data)
        for each in (optimizer, single):
            each.end_epoch(train=loader, val=[(*inputs, target.roll(1)) for *inputs, target in loader])
    assert state_of(optimizer)["calls"] == state_of(single)["calls"] == 24
    assert all(value.isfinite().all() for value in weights(both).values())
    ours, theirs = weights(both), weights(alone)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("encoders"))


def test_coefficients_scale_the_gradients_of_encoders_alone() -> None:
    both, alone = shared(dtype=torch.float64), shared(dtype=torch.float64)
    data = batches(both, 1, dtype=torch.float64)
    start = weights(both)
    for model, method in ((both, ["mla", Halving()]), (alone, "mla")):
        train(model, balanced(model, method, SGD(model.parameters(), lr=0.1)), data)
    for name, value in weights(both).items():
        factor = 0.5 if name.startswith("encoders") else 1.0
        torch.testing.assert_close(value - start[name], factor * (weights(alone)[name] - start[name]))


@pytest.mark.parametrize("other", ["agm", "cggm", "dgl", "opm", "pmr", "inforeg", "mmpareto", "mmcosine", "lfm"])
def test_methods_of_a_joint_loss_are_refused(other: str) -> None:
    model = shared()
    with pytest.raises(ConfigError, match=rf"mla.*{other}|{other}.*mla|a last layer that is linear on a concatenation"):
        balanced(model, ["mla", other])


# Refusals


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("concat", "takes the features of all modalities together: let one head classify each modality alone"),
        ("mlp", "Found .'MLPFusion'. in `fusion=`, without a sole layer.*name such a module in `head=`"),
        ("film", "without a sole layer"),
        ("gated", "without a sole layer"),
        ("attention", "without a sole layer"),
    ],
)
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_a_head_on_all_features_is_refused(names: str, head: str, message: str) -> None:
    model = multimodal(names, head)
    with pytest.raises(ConfigError, match=message):
        balanced(model, "mla")


class Pooling(nn.Module):
    """A concatenating fusion that takes sequences, which no trial with vectors shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, *features: Tensor) -> Tensor:
        assert all(z.dim() == 3 for z in features)
        logits: Tensor = self.linear(torch.cat([z.mean(1) for z in features], -1))
        return logits


def test_a_head_of_another_width_is_refused_at_the_first_batch() -> None:
    model = shared()
    model.encoders = nn.ModuleDict(
        {name: nn.Sequential(phi, nn.Unflatten(1, (1, 4))) for name, phi in model.encoders.items()}
    )
    model.fusion = Pooling()
    criterion = balanced(model, "mla").criterion(LOSS)
    ((inputs, target),) = batches(model, 1)
    with pytest.raises(ConfigError, match=r"a feature of width 4 of 'a'.*where widths differ, a projection belongs to"):
        criterion(model(*inputs), target)


def test_a_head_that_gives_no_logits_is_refused() -> None:
    model = shared()
    model.fusion = SharedHead(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3).requires_grad_(False)))
    criterion = balanced(model, "mla", head="fusion.head.0").criterion(LOSS)
    ((inputs, target),) = batches(model, 1)
    with pytest.raises(ConfigError, match=r"logits of the shape of the fused ones, \(6, 3\). Found \(6, 5\) for 'a'"):
        criterion(model(*inputs), target)


class Around(nn.Module):
    """One layer, with something between it and the features."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.change, self.fc_out = change, nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if self.change == "relu":
            a, b = a.relu(), b.relu()
        elif self.change == "in place":
            a, b = a.mul_(2), b.mul_(2)
        elif self.change == "order":
            a, b = b, a
        elif self.change == "product":
            a = b = a * b
            return torch.as_tensor(self.fc_out(a))
        return torch.as_tensor(self.fc_out(input=a) + self.fc_out(b))


@pytest.mark.parametrize("change", ["relu", "in place", "order", "product"])
def test_what_changes_features_before_the_head_is_refused(change: str) -> None:
    model = shared()
    model.fusion = Around(change)
    optimizer = balanced(model, "mla")
    criterion = optimizer.criterion(LOSS)
    ((inputs, target),) = batches(model, 1)
    with pytest.raises(
        ConfigError, match=r"on the feature of each of \['a', 'b'\], as it is and in this order\. Found"
    ):
        criterion(model(*inputs), target)


def test_a_head_may_be_called_by_keyword() -> None:
    model = shared()
    model.fusion = Around("")
    train(model, balanced(model, "mla"), batches(model, 2))


class Joint(nn.Module):
    """Several layers on a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.as_tensor(self.net(torch.cat([a, b], 1)))


@pytest.mark.parametrize("head", ["fusion", "fusion.net"])
def test_a_named_head_that_reads_all_features_is_refused(head: str) -> None:
    model = shared()
    model.fusion = Joint()
    criterion = balanced(model, "mla", head=head).criterion(LOSS)
    ((inputs, target),) = batches(model, 1)
    with pytest.raises(ConfigError, match=r"as it is and in this order\. Found 1 calls"):
        criterion(model(*inputs), target)


class Gate(SharedFusion):
    """One head, with weights that are learned."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.gate = nn.Parameter(torch.ones(2))

    def forward(self, *features: Tensor) -> Tensor:
        return torch.stack([w * self.fc_out(z) for w, z in zip(self.gate, features, strict=True)]).sum(0)


def test_a_fusion_that_trains_more_than_the_head_is_refused() -> None:
    model = shared()
    model.fusion = Gate()
    with pytest.raises(ConfigError, match=r"train nothing but the head.*Found \['gate'\], which would never change"):
        balanced(model, "mla", head="fusion.fc_out")
    model.fusion.get_parameter("gate").requires_grad_(False)
    train(model, balanced(model, "mla", head="fusion.fc_out"), batches(model, 1))


def test_micro_batches_are_no_error_in_a_dry_run() -> None:
    model = shared()
    optimizer = balanced(model, "mla", dry_run=True)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in batches(model, 2):
        criterion(model(*inputs), target).backward()
    optimizer.step()


def test_a_shared_head_checks_the_number_of_weights() -> None:
    z = torch.zeros(2, 4)
    with pytest.raises(ConfigError, match=r"a weight for each of 2 features\. Found 1 in `weights=`"):
        SharedHead(nn.Linear(4, 3), [1.0])(z, z)


class ByKeyword(nn.Module):
    """A head that calls its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, z: Tensor) -> Tensor:
        return torch.as_tensor(self.fc(input=z))


def test_the_projection_sees_an_input_by_keyword() -> None:
    model = shared()
    model.fusion = SharedHead(ByKeyword())
    optimizer = balanced(model, "mla", head="fusion.head", **PROJECTED)
    train(model, optimizer, batches(model, 2))
    assert state_of(optimizer)["P"].shape == (4, 4)


def test_micro_batches_are_refused_before_the_first_step() -> None:
    model = shared()
    optimizer = balanced(model, "mla")
    criterion = optimizer.criterion(LOSS)
    (one, y), (two, z) = batches(model, 2)
    before = weights(model)
    (criterion(model(*one), y) / 2).backward()
    with pytest.raises(
        ConfigError, match=r"on whole batches\. Found a second criterion call before `opt\.step.*call `opt\.zero_grad"
    ):
        criterion(model(*two), z)
    assert_same(weights(model), before)


def test_optimizers_and_clips_that_do_not_go_with_single_steps_are_refused() -> None:
    model = shared()
    with pytest.raises(ConfigError, match="Found LBFGS, whose step calls a closure"):
        balanced(model, "mla", LBFGS(model.parameters()))
    with pytest.raises(ConfigError, match="without a joint clip"):
        balanced(model, "mla", clip_grad_norm=1.0)
    with pytest.raises(ConfigError, match=r"`apply=.update.` applies coefficients.*leave `apply` out"):
        balanced(model, "mla", apply="update")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"a": 1.0}}, r"`weights` of method `mla` should give a number for each of \['a', 'b'\]"),
        ({"weights": {"a": -1.0, "b": 1.0}}, "`weights`.*numbers >= 0"),
        ({"head": "fusion.fc"}, "`head` of method `mla` names no submodule"),
        ({"head": "encoders.a"}, "The head of method `mla` should be no part of an encoder. Found"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch`"),
        ({"preset": "paper"}, "`preset` of method `mla` should be 'official'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    model = shared()
    with pytest.raises(ConfigError, match=message):
        balanced(model, "mla", **options)


def test_a_projection_needs_a_linear_layer() -> None:
    model = shared()
    model.fusion = SharedHead(nn.Bilinear(2, 2, 3))
    with pytest.raises(ConfigError, match="turns the gradient of the weight of a linear layer"):
        balanced(model, "mla", projection="rls", head="fusion.head")


def test_encoders_that_share_a_parameter_are_refused() -> None:
    model = shared()
    model.encoders["b"] = model.encoders["a"]
    with pytest.raises(ConfigError, match="Encoders should not share parameters"):
        balanced(model, "mla")


@pytest.mark.parametrize("how", ["batch_entropy", "sample_entropy"])
def test_entropies_need_classes(how: str) -> None:
    model = shared()
    criterion = balanced(model, "mla", eval_weights=how).criterion(nn.MSELoss(), score="regression")
    ((inputs, target),) = batches(model, 1)
    with pytest.raises(ConfigError, match="weighs modalities by the entropy of their predictions, and needs targets"):
        criterion(model(*inputs), F.one_hot(target, 3).float())


def test_logits_of_another_forward_are_refused_in_evaluation() -> None:
    model = shared()
    criterion = balanced(model, "mla").criterion(LOSS)
    (one, y), (two, z) = batches(model, 2)
    model.eval()
    outputs = torch.cat([model(*one), model(*two)])
    with pytest.raises(ConfigError, match=r"call the criterion, or `criterion.logits`, after each forward"):
        criterion(outputs, torch.cat([y, z]))


@pytest.mark.parametrize("how", ["fixed", "batch_entropy", "sample_entropy"])
def test_a_modality_that_a_sample_lacks_has_no_weight_in_evaluation(how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    o = {name: torch.randn(4, 3, generator=generator) for name in "ab"}
    present = present_of(a=[True, True, False, False], b=[True, False, True, False])
    found = fused(o, how, None, present)
    torch.testing.assert_close(found[0], fused(o, how, None)[0])
    torch.testing.assert_close(found[1:], torch.stack([o["a"][1], o["b"][2], torch.zeros(3)]))


def test_present_reaches_the_evaluation() -> None:
    model = shared()
    criterion = balanced(model, "mla").criterion(LOSS)
    inputs, target = batches(model, 1)[0]
    nobody = {"b": torch.zeros(len(target), dtype=torch.bool)}
    model.eval()
    with torch.no_grad():
        criterion(model(*inputs), target)
        predicted = criterion.logits(model(*inputs), present=nobody)
        torch.testing.assert_close(predicted, model.fusion.get_submodule("fc_out")(model.encoders["a"](inputs[0])))
        torch.testing.assert_close(criterion(model(*inputs), target, present=nobody), LOSS(predicted, target))
