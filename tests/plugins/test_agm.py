"""AGM beyond parity: what it costs, where it acts, what it leaves alone, what it refuses."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

from bench.measure import flops, operations
from bench.models import PAPER_SIZES, WORKLOADS, bare_step, method_step
from bench.peak_memory import peak_of_a_step
from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning, ObservationError
from modbalance_agm import AGM
from modbalance_ogm_ge import OGM
from support.encoders import ENCODERS, mixed
from support.models import HEADS, AudioVisual, Multimodal, SumFusion
from support.operation_counts import READS, CountOps
from support.training import (
    Batch,
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
KINDS = sorted(ENCODERS)
FORMS = ["factored", "full", "joined", "auto"]


def agm(model: nn.Module, **arguments: Any) -> BalancedOptimizer:
    """Return AGM in the factored form, which needs no comparison on the first batch."""
    return balanced(model, "agm", **({"coalitions": "factored"} | arguments))


def state(optimizer: BalancedOptimizer) -> dict[str, Any]:
    saved: dict[str, Any] = optimizer.state_dict()["modbalance"]["methods"]["agm"]
    return saved


def kappas(optimizer: BalancedOptimizer) -> list[float]:
    return [value for key, value in optimizer.metrics().items() if "/kappa/" in key]


def gradients_of(model: nn.Module, optimizer: BalancedOptimizer, batch: Batch) -> dict[str, Tensor]:
    """Return the gradients of one batch, before any clip; the step is not taken."""
    optimizer.zero_grad()
    inputs, target = batch
    optimizer.criterion(LOSS)(model(*inputs), target).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What it costs


@contextmanager
def encoded(model: Multimodal) -> Iterator[tuple[Counter[int], Counter[int]]]:
    """Count in the body how often encoders run on how many samples, forward and backward.

    The hook is on all modules of the process, since hooks on encoders are code that may change their features.
    """
    forwards: Counter[int] = Counter()
    backwards: Counter[int] = Counter()
    encoders = set(model.encoders.values())

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        if module in encoders:
            forwards.update([len(output)])
            if output.requires_grad:
                output.register_hook(lambda gradient: backwards.update([len(gradient)]))

    handle = register_module_forward_hook(watch)
    try:
        yield forwards, backwards
    finally:
        handle.remove()


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
@pytest.mark.parametrize(
    ("kind", "passes"), [("layer norm", {6: 1, 1: 1}), ("batch norm", {6: 1, 7: 1}), ("dropout", {6: 1, 7: 1})]
)
def test_passes_of_each_encoder(names: str, kind: str, passes: dict[int, int]) -> None:
    """One more on a masked sample; where the mode matters, on the batch with the masked sample behind it."""
    model = mixed(names, [kind] * len(names))
    optimizer = agm(model)
    train(model, optimizer, batches(model, 1, dtype=torch.float64))
    with encoded(model) as (forwards, backwards):
        train(model, optimizer, batches(model, 1, size=6, dtype=torch.float64))
    expected = {size: count * len(names) for size, count in passes.items()}
    assert forwards == backwards == expected


def test_all_coalitions_are_one_batch() -> None:
    model = mixed("abc", ["batch norm"] * 3)
    optimizer = agm(model, coalitions="joined")
    with encoded(model) as (forwards, backwards):
        train(model, optimizer, batches(model, 1, size=4, dtype=torch.float64))
    assert forwards == backwards == {4: 3, 6 * 4: 3}


def test_large_inputs_take_a_pass_for_each_coalition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modbalance.coalitions.JOINED_ELEMENTS", 2 * 2 * 4 * 5)
    model = mixed("ab", ["batch norm"] * 2)
    optimizer = agm(model, coalitions="joined")
    with encoded(model) as (forwards, _):
        train(model, optimizer, batches(model, 1, size=4, dtype=torch.float64))
        train(model, optimizer, batches(model, 1, size=5, dtype=torch.float64))
    assert forwards == {4: 2, 2 * 4: 2, 5: 6}


def test_logits_that_are_not_by_sample_cannot_be_joined() -> None:
    class Pooled(Multimodal):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs).mean(0, keepdim=True)

    model = Pooled()
    optimizer = agm(model, coalitions="joined")
    (inputs, target), *_ = batches(model, 1)
    with pytest.raises(ConfigError, match=r"should return 2 rows of logits for 2 batches as one.*coalitions='full'"):
        optimizer.criterion(LOSS)(model(*inputs), target[:1])


class Scaled(Multimodal):
    """Takes a number in a tensor, to which no sample can be appended."""

    def forward(self, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(a, b * scale)


def test_inputs_that_cannot_be_concatenated_have_two_passes() -> None:
    gradients = []
    for coalitions in ("factored", "full"):
        model = Scaled()
        model.load_state_dict(multimodal().state_dict())
        model.encoders["a"].append(nn.Dropout(0.5))  # type: ignore[operator]
        optimizer = agm(model.double(), coalitions=coalitions, clip_trigger=None)
        ((a, b), target), *_ = batches(model, 1, dtype=torch.float64)
        torch.manual_seed(3)
        with encoded(model) as (forwards, _):
            gradients.append(gradients_of(model, optimizer, ((a, b, torch.tensor(0.5).double()), target)))
        assert forwards == ({6: 4, 1: 2} if coalitions == "factored" else {6: 6})
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).abs().max() <= 1e-12


def test_a_batch_of_one_and_an_empty_batch_can_be_joined() -> None:
    for size in (1, 0):
        model, other = (mixed("ab", ["dropout", "layer norm"]) for _ in range(2))
        data = batches(model, 1, size=size, dtype=torch.float64)
        for each, coalitions in ((model, "factored"), (other, "full")):
            torch.manual_seed(3)
            optimizer = agm(each, coalitions=coalitions, clip_trigger=None)
            inputs, target = data[0]
            optimizer.criterion(nn.CrossEntropyLoss(reduction="sum"))(each(*inputs), target).backward()
            optimizer.step()
        assert_close(model, other, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "coalitions", "most"),
    [("mlp", "auto", 210), ("vit", "auto", 3_850), ("vit", "joined", 4_300), ("pair", "auto", 1_450)],
)
def test_operations_of_a_step(name: str, coalitions: str, most: int) -> None:
    assert operations(method_step(WORKLOADS[name], "agm", coalitions=coalitions), warm_up=1) <= most


@pytest.mark.slow
def test_floating_point_operations_of_a_step() -> None:
    """Of transformers without dropout: one forward and backward on the batch, and on one masked sample of 16."""
    wide = WORKLOADS["wide"]
    assert flops(method_step(wide, "agm"), warm_up=1) <= 1.07 * flops(bare_step(wide), warm_up=0)


@pytest.mark.parametrize("coalitions", FORMS)
@pytest.mark.parametrize("options", [{}, {"preset": "paper"}, {"masked_pass_grad": False}, {"max_gap": None}])
def test_no_host_reads_are_added(coalitions: str, options: dict[str, Any]) -> None:
    counts = {}
    for method in ("none", "agm"):
        model = audio_visual()
        optimizer = balanced(model, "none") if method == "none" else agm(model, coalitions=coalitions, **options)
        *warm_up, last = batches(model, 3)
        train(model, optimizer, warm_up)
        with CountOps() as counted:
            train(model, optimizer, [last])
        counts[method] = counted.ops
    assert not READS & (counts["agm"] - counts["none"]).keys()


@pytest.mark.parametrize("coalitions", FORMS[:-1])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_step_runs_on_fake_tensors(coalitions: str, epoch: int) -> None:
    def build(model: nn.Module) -> BalancedOptimizer:
        optimizer = agm(model, coalitions=coalitions, start_epoch=1, end_epoch=1, after_window="freeze")
        optimizer.epoch = epoch
        return optimizer

    assert steps_on_fake_tensors(build) == 2


# What it leaves alone


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("kinds", [KINDS, ["layer norm"] * 4, ["batch norm"] * 4])
def test_all_forms_have_equal_gradients(names: str, head: str, kinds: list[str]) -> None:
    results = []
    for coalitions in ("factored", "joined", "full"):
        model = mixed(names, kinds, head)
        optimizer = agm(model, coalitions=coalitions, alpha=2.5, clip_trigger=None)
        data = batches(model, 3, dtype=torch.float64)
        torch.manual_seed(3)
        train(model, optimizer, data[:2])
        results.append(gradients_of(model, optimizer, data[2]))
    *others, full = results
    for other in others:
        assert other.keys() == full.keys()
        for name in full:
            assert (other[name] - full[name]).abs().max() <= 1e-12, name


@pytest.mark.parametrize("coalitions", FORMS)
@pytest.mark.parametrize("masked_mode", ["eval", "train"])
def test_buffers_flags_and_random_numbers_are_those_of_the_bare_step(coalitions: str, masked_mode: str) -> None:
    if masked_mode == "train":
        coalitions = "full"
    model, plain = (mixed("abcd", KINDS) for _ in range(2))
    for each in (model, plain):
        each.encoders["a"][1].eval()  # type: ignore[index]
    optimizer = agm(model, coalitions=coalitions, masked_mode=masked_mode)
    flags = {name: module.training for name, module in model.named_modules()}
    data = batches(model, 1, dtype=torch.float64)
    torch.manual_seed(5)
    train(model, optimizer, data)
    after = torch.random.get_rng_state()
    torch.manual_seed(5)
    train(plain, sgd(plain), data)

    assert torch.equal(after, torch.random.get_rng_state())
    assert flags == {name: module.training for name, module in model.named_modules()}
    assert equal(dict(model.named_buffers()), dict(plain.named_buffers()))


def test_the_loss_is_the_task_loss() -> None:
    model = mixed("abcd", KINDS)
    optimizer = agm(model)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in batches(model, 3, dtype=torch.float64):
        optimizer.zero_grad()
        logits = model(*inputs)
        loss = criterion(logits, target)
        assert torch.equal(loss, LOSS(logits, target))
        loss.backward()
        optimizer.step()


def test_evaluation_is_the_users_loss() -> None:
    model = multimodal()
    optimizer = agm(model)
    (inputs, target), *_ = batches(model, 1)
    criterion = optimizer.criterion(LOSS)
    with torch.no_grad():
        assert torch.equal(criterion(model(*inputs), target), LOSS(model(*inputs), target))
    model.eval()
    logits = model(*inputs)
    assert torch.equal(criterion(logits, target), LOSS(logits, target))
    assert optimizer.metrics() == {}


def test_dry_run_computes_and_changes_nothing() -> None:
    model, plain = audio_visual(), audio_visual()
    data = batches(model, 3)
    optimizer = agm(model, dry_run=True, clip_trigger=1e-3)
    train(model, optimizer, data)
    assert_same(model, train(plain, sgd(plain), data))
    assert any(kappa != 1 for kappa in kappas(optimizer))


# The window


def test_outside_the_window_weights_are_those_of_the_inner_optimizer() -> None:
    model, plain = audio_visual(), audio_visual()
    data = batches(model, 3)
    optimizer = agm(model, start_epoch=2, end_epoch=3, clip_trigger=1e-3)
    for epoch in (0, 1, 4, 9):
        optimizer.epoch = epoch
        train(model, optimizer, data)
    inner = sgd(plain)
    for _ in range(4):
        train(plain, inner, data)
    assert_same(model, plain)
    assert state(optimizer)["score_steps"] == 6


@pytest.mark.parametrize(("epoch", "acts"), [(0, False), (1, True), (2, True), (3, False)])
def test_edges_of_the_window(epoch: int, acts: bool) -> None:
    model, plain = multimodal(), multimodal()
    optimizer = agm(model, start_epoch=1, end_epoch=2, clip_trigger=None)
    optimizer.epoch = epoch
    (batch,) = batches(model, 1)
    same = equal(gradients_of(model, optimizer, batch), gradients_of(plain, balanced(plain, "none"), batch))
    assert acts != same


def test_after_the_window_nothing_is_added() -> None:
    counts = []
    for method in ("none", "agm"):
        model = audio_visual()
        optimizer = balanced(model, "none") if method == "none" else agm(model, end_epoch=0)
        optimizer.epoch = 1
        with CountOps() as counted:
            train(model, optimizer, batches(model, 1))
        counts.append(counted.ops)
    assert counts[0] == counts[1]


def test_scores_gather_before_the_window_without_gradients() -> None:
    model, other = multimodal(), multimodal()
    data = batches(model, 2)
    early, late = agm(model, alpha=1e-9), agm(other, start_epoch=1)
    train(model, early, data[:1])
    train(other, late, data[:1])
    assert torch.equal(state(early)["mean_score"], state(late)["mean_score"])
    assert kappas(late) == []


def test_a_frozen_scale_is_that_of_the_last_step_in_the_window() -> None:
    model = multimodal()
    optimizer = agm(model, alpha=2.5, end_epoch=0, after_window="freeze")
    train(model, optimizer, batches(model, 3))
    last = kappas(optimizer)
    optimizer.end_epoch()
    train(model, optimizer, batches(model, 2, seed=2))
    assert kappas(optimizer) == last != [1, 1]
    assert state(optimizer)["score_steps"] == 5


def test_a_frozen_scale_is_1_where_the_window_was_missed() -> None:
    model, plain = multimodal(), multimodal()
    optimizer = agm(model, end_epoch=0, after_window="freeze", clip_trigger=None)
    optimizer.epoch = 1
    data = batches(model, 2)
    assert_same(train(model, optimizer, data), train(plain, sgd(plain), data))


@pytest.mark.parametrize("steps", [1, 3, 4])
@pytest.mark.parametrize("options", [{}, {"after_window": "freeze"}, {"start_epoch": 1, "end_epoch": 1}])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(steps: int, options: dict[str, Any]) -> None:
    """Epochs are three steps long: after 1 a run is amid the first one, after 3 at its end, after 4 in the next."""
    options = {"end_epoch": 0, "alpha": 2.5, "coalitions": "auto"} | options
    model, resumed = audio_visual(), audio_visual(seed=9)
    data = batches(model, 7)

    def go(model: nn.Module, optimizer: BalancedOptimizer, start: int, stop: int) -> None:
        for index in range(start, stop):
            train(model, optimizer, [data[index]])
            if index % 3 == 2:
                optimizer.end_epoch()

    optimizer = agm(model, **options)
    go(model, optimizer, 0, steps)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    go(model, optimizer, steps, 7)

    file.seek(0)
    saved, saved_optimizer = torch.load(file, weights_only=True)
    other = agm(resumed, **options)
    resumed.load_state_dict(saved)
    other.load_state_dict(saved_optimizer)
    assert state(other)["form"] == "factored"
    go(resumed, other, steps, 7)

    assert_same(resumed, model)
    ours, theirs = state(other), state(optimizer)
    assert all(torch.equal(ours[name], theirs[name]) for name in ("mean_score", "score_steps", "last_kappa"))
    assert kappas(other) == kappas(optimizer)


# Masked passes that run again in the backward


@pytest.mark.slow
@pytest.mark.parametrize("coalitions", ["factored", "full"])
def test_recomputation_takes_hardly_more_memory_than_the_bare_step(coalitions: str) -> None:
    bare, _ = peak_of_a_step(PAPER_SIZES, None)
    peak, added = peak_of_a_step(PAPER_SIZES, "agm", coalitions=coalitions, recompute=True)
    assert peak <= 1.15 * bare
    assert added == 0


@pytest.mark.parametrize("coalitions", FORMS)
@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
@pytest.mark.parametrize("kinds", [KINDS, ["layer norm"] * 4])
@pytest.mark.parametrize("size", [1, 6])
def test_recomputation_yields_the_same_gradients(coalitions: str, names: str, kinds: list[str], size: int) -> None:
    assert_recomputation_is_equal(names, kinds, size, {"coalitions": coalitions})


OPTIONS: list[dict[str, Any]] = [
    {"masked_mode": "train", "coalitions": "full"},
    {"masked_pass_grad": False},
    {"start_epoch": 1},
    {"end_epoch": 0, "after_window": "freeze"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_recomputation_goes_with_other_options(options: dict[str, Any]) -> None:
    assert_recomputation_is_equal("abc", KINDS, 6, options)


def assert_recomputation_is_equal(names: str, kinds: list[str], size: int, options: dict[str, Any]) -> None:
    kinds = ["dropout" if kind == "batch norm" and size == 1 else kind for kind in kinds]
    found = []
    for recompute in (False, True):
        model = mixed(names, kinds, "mlp")
        optimizer = agm(model, recompute=recompute, alpha=2.5, clip_trigger=None, **options)
        *data, last = batches(model, 3, size=size, dtype=torch.float64)
        torch.manual_seed(3)
        train(model, optimizer, data)
        optimizer.end_epoch()
        found.append((gradients_of(model, optimizer, last), torch.random.get_rng_state(), dict(model.named_buffers())))
    (plain, state, buffers), (again, its_state, its_buffers) = found
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert (gradient - again[name]).abs().max() <= 1e-12, name
    assert torch.equal(state, its_state)
    assert all((buffers[name] - its_buffers[name]).abs().max() <= 1e-12 for name in buffers)


def test_recomputation_reaches_networks_before_the_model() -> None:
    found = []
    for recompute in (False, True):
        model, stem = mixed("ab", ["batch norm", "layer norm"]), nn.Linear(5, 5, bias=False).double()
        nn.init.eye_(stem.weight)
        optimizer = agm(model, recompute=recompute)
        ((a, b), target), *_ = batches(model, 1, dtype=torch.float64)
        optimizer.criterion(LOSS)(model(stem(a), b), target).backward()
        assert stem.weight.grad is not None
        found.append(stem.weight.grad)
    assert (found[0] - found[1]).abs().max() <= 1e-12


def test_recomputation_with_the_scaled_gradients_of_autocast() -> None:
    found = []
    for recompute in (False, True):
        model = mixed("ab", ["batch norm", "layer norm"], dtype=torch.float32)
        optimizer, scaler = agm(model, recompute=recompute), GradScaler("cpu", init_scale=2.0**10)
        criterion = optimizer.criterion(LOSS)
        for inputs, target in batches(model, 3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = criterion(model(*inputs), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(model)
    assert_close(found[0], found[1], 1e-3)  # gradients are added in bfloat16, in another order


def test_recomputation_in_a_model_of_another_mode_than_before() -> None:
    """As in loops that evaluate between the criterion and the backward."""
    model, other = (mixed("ab", ["dropout", "layer norm"]) for _ in range(2))
    batch, *_ = batches(model, 1, dtype=torch.float64)
    torch.manual_seed(3)
    expected = gradients_of(other, agm(other), batch)
    torch.manual_seed(3)
    loss = agm(model, recompute=True).criterion(LOSS)(model(*batch[0]), batch[1])
    model.eval()
    loss.backward()
    assert not any(module.training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad - expected[name]).abs().max() <= 1e-12


# The form of the masked passes


class Crossed(Multimodal):
    """The features of b get something of the input of a, by a gate that may be closed."""

    gate = 0.0

    def forward(self, *inputs: Tensor) -> Tensor:
        a, b = (encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True))
        return self.fusion(a, b + self.gate * inputs[0][:, :4])


class Masking(Multimodal):
    """Takes a mask that belongs to no modality."""

    def forward(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        seen = a if mask is None else a * mask
        return super().forward(seen, b)


class Skipping(Multimodal):
    """Logits have a part that does not come from the fusion."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs) + inputs[0][:, :3]


class Unfixed(Multimodal):
    """Cannot run on one sample."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*(x.view(6, 5) for x in inputs))


class Summarized(Multimodal):
    """The fusion gets one concatenated tensor."""

    def forward(self, *inputs: Tensor) -> Tensor:
        features = [encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True)]
        return self.fusion(torch.cat(features, -1))


@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_auto_sees_an_encoder_that_looks_at_another_input(gate: float) -> None:
    model = Crossed()
    model.gate = gate
    optimizer = agm(model, coalitions="auto")
    with pytest.warns(ModbalanceWarning, match="features of 'b' depend on the input of another"):
        train(model, optimizer, batches(model, 1))
    train(model, optimizer, batches(model, 1))
    assert state(optimizer)["form"] == "full"


def test_auto_takes_no_chances_with_other_tensors() -> None:
    model = Masking()
    optimizer = agm(model, coalitions="auto")
    ((a, b), target), *_ = batches(model, 1)
    with pytest.warns(ModbalanceWarning, match="tensors that belong to no modality"):
        optimizer.criterion(LOSS)(model(a, b, torch.ones(6, 5)), target)


@pytest.mark.parametrize(
    ("model", "words"), [(Skipping, "different logits"), (Unfixed, "the other form fails .*invalid for input of size")]
)
def test_auto_falls_back_to_whole_passes(model: type[Multimodal], words: str) -> None:
    crossed, same = model(), model()
    same.load_state_dict(crossed.state_dict())
    data = batches(crossed, 2)
    optimizer = agm(crossed, coalitions="auto")
    with pytest.warns(ModbalanceWarning, match=words) as given:
        train(crossed, optimizer, data)
    assert len(given) == 1
    assert given[0].filename.startswith(str(Path(__file__).parents[1]))
    assert_same(crossed, train(same, agm(same, coalitions="full"), data))


class Overwriting(nn.Sequential):
    """A fusion that writes into its features, to no effect the second time."""

    def forward(self, *features: Tensor) -> Tensor:
        logits: Tensor = super().forward(torch.cat([feature.relu_() for feature in features], -1))
        return logits


@pytest.mark.parametrize(("size", "words"), [(6, "more than one element"), (1, "fusion changes its features in place")])
def test_auto_takes_no_chances_with_a_fusion_that_writes_into_its_features(size: int, words: str) -> None:
    model, same = multimodal(), multimodal()
    for each in (model, same):
        torch.manual_seed(0)
        each.fusion = Overwriting(nn.Linear(8, 3))
    data = batches(model, 2, size=size)
    with pytest.warns(ModbalanceWarning, match=words):
        train(model, agm(model, coalitions="auto"), data)
    assert_same(model, train(same, agm(same, coalitions="full"), data))


def test_auto_without_a_fusion_runs_the_model() -> None:
    model = multimodal()
    optimizer = agm(model, coalitions="auto", fusion=None)
    with pytest.warns(ModbalanceWarning, match="needs `fusion=`"):
        train(model, optimizer, batches(model, 1))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_auto_finds_independent_encoders(head: str) -> None:
    model = mixed("abcd", KINDS, head)
    optimizer = agm(model, coalitions="auto")
    train(model, optimizer, batches(model, 1, dtype=torch.float64))
    assert state(optimizer)["form"] == "factored"


def test_auto_finds_independent_encoders_before_a_concatenated_fusion() -> None:
    model = Summarized(head="mlp")
    model.fusion.forward = lambda joined: nn.Sequential.forward(model.fusion, joined)  # type: ignore[arg-type]
    optimizer = agm(model, coalitions="auto", feature_sizes=(4, 4))
    train(model, optimizer, batches(model, 1))
    assert state(optimizer)["form"] == "factored"


def test_auto_finds_independent_encoders_before_a_callable_fusion() -> None:
    model = mixed("ab", ["batch norm", "dropout"])
    optimizer = agm(model, coalitions="auto", fusion=lambda a, b: model.fusion(a, b))
    train(model, optimizer, batches(model, 1, dtype=torch.float64))
    assert state(optimizer)["form"] == "factored"


def test_auto_puts_the_decision_off_where_a_batch_shows_nothing() -> None:
    model = multimodal()
    for parameter in model.fusion.parameters():
        nn.init.zeros_(parameter)
    optimizer = agm(model, coalitions="auto")
    train(model, optimizer, batches(model, 1, size=0))
    assert state(optimizer)["form"] == "auto"
    train(model, optimizer, batches(model, 1))
    assert state(optimizer)["form"] == "auto"
    train(model, optimizer, batches(model, 1))
    assert state(optimizer)["form"] == "factored"


# The conditional clip


@pytest.mark.parametrize(("trigger", "acts"), [(1e-4, True), (1e4, False), (None, False)])
def test_the_clip_acts_beyond_its_trigger(trigger: float | None, acts: bool) -> None:
    model = audio_visual()
    optimizer = agm(model, clip_trigger=trigger, clip_norm=0.01)
    raw = gradients_of(model, optimizer, *batches(model, 1))
    optimizer.modulate()
    clipped = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert acts != equal(raw, clipped)
    if acts:
        norm = torch.stack([gradient.norm() for gradient in clipped.values()]).norm()
        assert norm.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("entry", [2.0, -2.0])
@pytest.mark.parametrize("head", ["fc_x", "fc_y"])
def test_own_heads_are_the_head_of_a_sum(entry: float, head: str) -> None:
    model = audio_visual(SumFusion)
    optimizer = agm(model)
    gradients_of(model, optimizer, *batches(model, 1))
    for name, parameter in model.named_parameters():
        parameter.grad = torch.zeros_like(parameter)
        if name == f"fusion_module.{head}.weight":
            parameter.grad[0, 0] = entry
    optimizer.modulate()
    gradient = model.get_parameter(f"fusion_module.{head}.weight").grad
    assert gradient is not None
    assert gradient[0, 0].item() == pytest.approx(entry / 2, rel=1e-5)


def test_other_weights_do_not_trigger_the_clip() -> None:
    model = multimodal(head="mlp")
    optimizer = agm(model)
    gradients_of(model, optimizer, *batches(model, 1))
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, 0.5 if name == "fusion.2.weight" else 5.0)
    optimizer.modulate()
    assert all(p.grad is not None and p.grad.abs().max() in (0.5, 5.0) for p in model.parameters())


def test_a_clip_without_a_head_is_refused() -> None:
    model = multimodal()
    model.fusion = nn.Identity()
    with pytest.raises(ConfigError, match=r"Found no matrix among the parameters of the fusion.*`clip_trigger=None`"):
        agm(model)
    agm(model, clip_trigger=None)


# What stands between the passes and the backward


@pytest.mark.parametrize("grad", [True, False])
def test_a_forward_in_training_mode_before_the_backward_is_an_error(grad: bool) -> None:
    model = audio_visual()
    optimizer = agm(model)
    (inputs, target), *_ = batches(model, 1)
    loss = optimizer.criterion(LOSS)(model(*inputs), target)
    with torch.set_grad_enabled(grad):
        model(*inputs)
    with pytest.raises(ObservationError, match=r"Found that the buffer '.*num_batches_tracked' changed since"):
        loss.backward()


@pytest.mark.parametrize("options", [{"masked_pass_grad": False}, {"masked_mode": "train", "coalitions": "full"}])
def test_a_forward_before_the_backward_may_stand_where_no_eval_pass_is_differentiated(options: dict[str, Any]) -> None:
    model = audio_visual()
    optimizer = agm(model, **options)
    (inputs, target), *_ = batches(model, 1)
    loss = optimizer.criterion(LOSS)(model(*inputs), target)
    with torch.no_grad():
        model(*inputs)
    loss.backward()
    optimizer.step()


def test_without_batch_norm_two_forwards_may_share_a_backward() -> None:
    model, other = multimodal(dtype=torch.float64), multimodal(dtype=torch.float64)
    first, second = batches(model, 2, dtype=torch.float64)
    optimizer, one_by_one = agm(model), agm(other)
    criterion = optimizer.criterion(LOSS)
    (criterion(model(*first[0]), first[1]) + criterion(model(*second[0]), second[1])).backward()
    for inputs, target in (first, second):
        one_by_one.criterion(LOSS)(other(*inputs), target).backward()
    optimizer.step()
    one_by_one.step()
    assert_close(model, other, 1e-12)


class Checkpointed(AudioVisual):
    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        result: Tensor = checkpoint(super().forward, audio, visual, use_reentrant=False)
        return result


def test_activation_checkpointing_is_refused() -> None:
    model = Checkpointed()
    optimizer = agm(model)
    (inputs, target), *_ = batches(model, 1)
    with pytest.raises(ObservationError, match="recomputed in the backward"):
        optimizer.criterion(LOSS)(model(*inputs), target)
    optimizer = agm(model, masked_pass_grad=False)
    train(model, optimizer, batches(model, 1))


def test_checkpointing_from_outside_is_noticed_where_batch_norm_runs_again() -> None:
    model = audio_visual()
    optimizer = agm(model)
    (inputs, target), *_ = batches(model, 1)
    loss = optimizer.criterion(LOSS)(checkpoint(model, *inputs, use_reentrant=False), target)
    with pytest.raises(ObservationError, match="do not checkpoint the activations of a model with batch norm"):
        loss.backward()


def test_hooks_on_saved_tensors_around_the_loop_may_stand() -> None:
    model, other = multimodal(), multimodal()
    data = batches(model, 2)
    with torch.autograd.graph.save_on_cpu():
        train(model, agm(model), data)
    assert_same(model, train(other, agm(other), data))


# Loops of all kinds


def test_a_second_loss_on_one_forward_is_scaled_alike() -> None:
    """As in mixup: two criterion calls on the same logits."""
    model, other = audio_visual(), audio_visual()
    (inputs, target), *_ = batches(model, 1)
    optimizer = agm(model, clip_trigger=None, alpha=2.5)
    criterion = optimizer.criterion(LOSS)
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(*inputs)
        (0.25 * criterion(logits, target) + 0.75 * criterion(logits, target)).backward()
        optimizer.step()
    train(other, agm(other, clip_trigger=None, alpha=2.5), [(inputs, target)] * 2)
    assert state(optimizer)["score_steps"] == 2
    assert_close(model, other, 1e-6)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("coalitions", ["factored", "full"])
def test_masked_passes_run_under_the_autocast_of_the_forward(inside: bool, head: str, coalitions: str) -> None:
    model = multimodal(("a", "b"), head)
    optimizer = agm(model, coalitions=coalitions)
    criterion = optimizer.criterion(LOSS)
    types: set[torch.dtype] = set()
    model.encoders["a"].register_forward_hook(lambda module, args, output: types.add(output.dtype))
    for inputs, target in batches(model, 3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(*inputs)
            if inside:
                loss = criterion(logits, target)
        if not inside:
            loss = criterion(logits.float(), target)
        loss.backward()
        optimizer.step()
    assert types == {torch.bfloat16}
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert 0 < kappas(optimizer)[0] != 1


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_eager_one() -> None:
    torch._dynamo.reset()
    model, eager = audio_visual(), audio_visual()
    data = batches(model, 3)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = agm(model)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in data:
        optimizer.zero_grad()
        criterion(compiled(*inputs), target).backward()
        optimizer.step()
    assert_close(model, train(eager, agm(eager), data), 1e-6)
    assert optimizer._lifecycle.training.steps == 3
    torch._dynamo.reset()


def in_place(model: nn.Module, backend: Any) -> nn.Module:
    model.compile(backend=backend)
    return model


def around(model: nn.Module, backend: Any) -> nn.Module:
    return cast(nn.Module, torch.compile(model, backend=backend))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [around, in_place])
@pytest.mark.parametrize("options", [{"coalitions": "auto"}, {"coalitions": "full"}, {"recompute": True}])
@pytest.mark.parametrize("kind", ["layer norm", "batch norm"])
def test_masked_passes_run_compiled_code(
    compiled: Callable[[nn.Module, Any], nn.Module], options: dict[str, Any], kind: str
) -> None:
    """One graph for the forward and one for the masked passes, and none is compiled after the second step."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []
    runs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        index = len(graphs)
        graphs.append(graph)

        def run(*arguments: Any) -> Any:
            runs.append(index)
            return graph(*arguments)

        return run

    model, eager = mixed("ab", [kind] * 2), mixed("ab", [kind] * 2)
    data = batches(model, 5, dtype=torch.float64)
    forward = compiled(model, backend)
    optimizer = balanced(forward, "agm", **options, modalities=model.paths, fusion="fusion")
    criterion = optimizer.criterion(LOSS)
    for index, (inputs, target) in enumerate(data):
        if index == 2:
            seen = len(graphs)
        if index == 4:
            runs.clear()
        optimizer.zero_grad()
        criterion(forward(*inputs), target).backward()
        optimizer.step()
    encoding = [index for index in runs if any("linear" in str(node.target) for node in graphs[index].graph.nodes)]
    passes = 2 if options.get("coalitions") == "full" else 1
    assert len(graphs) == seen
    assert len(encoding) >= 1 + passes
    assert_close(model, train(eager, agm(eager, **options), data), 1e-12)
    torch._dynamo.reset()


class Nested(Multimodal):
    """Takes the second modality as a mapping."""

    def forward(self, a: Tensor, text: dict[str, Any]) -> Tensor:  # type: ignore[override]
        return super().forward(a, text["tokens"][0] * text["scale"])


@pytest.mark.parametrize("coalitions", FORMS)
def test_inputs_may_be_nested(coalitions: str) -> None:
    model, flat = Nested(), multimodal()
    model.load_state_dict(flat.state_dict())
    optimizer = agm(model, coalitions=coalitions)
    data = batches(flat, 2)
    for (a, b), target in data:
        optimizer.zero_grad()
        optimizer.criterion(LOSS)(model(a, {"tokens": [b], "scale": 1.0}), target).backward()
        optimizer.step()
    assert_close(model, train(flat, agm(flat, coalitions=coalitions), data), 1e-6)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_agm_beside_ogm(order: slice) -> None:
    """Coefficients of OGM scale what AGM's backward left in the encoders."""
    model, other = audio_visual(), audio_visual()
    batch, *_ = batches(model, 1)
    alone = agm(other, clip_trigger=None)
    both = balanced(model, [OGM(param_filter="all"), AGM(coalitions="factored", clip_trigger=None)][order])
    raw = gradients_of(other, alone, batch)
    assert equal(gradients_of(model, both, batch), raw)
    both.modulate()
    metrics = both.metrics()
    for modality in ("audio", "visual"):
        name = "audio_net.0.weight" if modality == "audio" else "visual_net.body.0.weight"
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert torch.allclose(gradient, metrics[f"ogm/coefficient/{modality}"] * raw[name], rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("coalitions", ["factored", "full"])
@pytest.mark.parametrize("options", [{}, {"preset": "paper"}, {"end_epoch": 0, "after_window": "freeze"}])
def test_a_step_does_not_synchronise(coalitions: str, options: dict[str, Any]) -> None:
    model = audio_visual().cuda()
    optimizer = agm(model, coalitions=coalitions, **options)
    *warm_up, last = [(tuple(x.cuda() for x in inputs), y.cuda()) for inputs, y in batches(model, 3)]
    train(model, optimizer, warm_up)
    optimizer.end_epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(model, optimizer, [last])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("coalitions", FORMS)
def test_frozen_encoders(coalitions: str) -> None:
    model = mixed("abc", KINDS)
    model.encoders["a"].requires_grad_(False)
    before = weights(model)
    train(model, agm(model, coalitions=coalitions), batches(model, 2, dtype=torch.float64))
    after = weights(model)
    assert torch.equal(before["encoders.a.0.weight"], after["encoders.a.0.weight"])
    assert not torch.equal(before["encoders.b.0.weight"], after["encoders.b.0.weight"])


def test_a_frozen_head_triggers_nothing() -> None:
    model = multimodal()
    model.fusion.requires_grad_(False)
    raw = gradients_of(model, optimizer := agm(model, clip_trigger=1e-6, clip_norm=1e-6), *batches(model, 1))
    optimizer.modulate()
    assert equal(raw, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("coalitions", FORMS)
def test_a_batch_of_one_and_of_none(coalitions: str) -> None:
    model = multimodal()
    optimizer = agm(model, coalitions=coalitions)
    train(model, optimizer, [*batches(model, 2, size=1)])
    optimizer.zero_grad()
    (inputs, target), *_ = batches(model, 1, size=0)
    (optimizer.criterion(nn.CrossEntropyLoss(reduction="sum"))(model(*inputs), target)).backward()
    optimizer.step()
    assert state(optimizer)["score_steps"] == 2
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert optimizer.metrics()["agm/nonfinite/a"] == 1


def test_encoders_may_share_parameters() -> None:
    model = multimodal()
    model.encoders["b"] = model.encoders["a"]
    optimizer = agm(model)
    train(model, optimizer, batches(model, 2))
    assert state(optimizer)["score_steps"] == 2


def test_samples_without_a_modality_do_not_count_in_its_score() -> None:
    model, other = multimodal(), multimodal()
    (inputs, target), *_ = batches(model, 1)
    there = torch.tensor([True, True, True, True, False, False])
    optimizer = agm(model)
    optimizer.criterion(LOSS)(model(*inputs), target, present={"a": there}).backward()
    optimizer.step()
    shorter = agm(other)
    shorter.criterion(LOSS)(other(*(x[:4] for x in inputs)), target[:4]).backward()
    shorter.step()
    a, b = state(optimizer)["mean_score"] - state(shorter)["mean_score"]
    assert abs(a) < 1e-6 < abs(b)


# Numbers at the edge


class Certain(Multimodal):
    """Logits so far apart that the probability of a wrong class is 0."""

    scale = 1e4

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.scale * super().forward(*inputs)


def test_an_infinite_score_gives_scale_1_is_counted_and_leaves_the_mean_alone() -> None:
    model = Certain()
    optimizer = agm(model, p_min=0.0, clip_trigger=None, coalitions="full")
    batch, *_ = batches(model, 1)
    model.scale = 1.0
    train(model, optimizer, [batch])
    before = state(optimizer)
    model.scale = 1e4
    modulated = gradients_of(model, optimizer, batch)
    assert kappas(optimizer) == [1, 1]
    optimizer.step()
    after = state(optimizer)
    assert torch.equal(before["mean_score"], after["mean_score"])
    assert torch.equal(before["score_steps"], after["score_steps"])
    assert optimizer.metrics()["agm/nonfinite/a"] == optimizer.metrics()["agm/nonfinite/b"] == 1
    assert all(gradient.isfinite().all() for gradient in modulated.values())


def test_a_smallest_probability_keeps_the_score_finite() -> None:
    model = Certain()
    optimizer = agm(model, coalitions="full")
    train(model, optimizer, batches(model, 1))
    assert state(optimizer)["mean_score"].max() <= -torch.tensor(1e-8).log() * (1 + 1e-6)
    assert optimizer.metrics()["agm/nonfinite/a"] == 0


def test_a_scale_that_overflows_is_1_and_counted() -> None:
    model = multimodal()
    optimizer = agm(model, max_gap=None, alpha=1e3)
    optimizer._lifecycle.methods[0].load_state_dict({"mean_score": torch.tensor([0.0, 9.0]).double()})
    gradients_of(model, optimizer, *batches(model, 1))
    assert kappas(optimizer)[0] == 1
    assert optimizer.metrics()["agm/nonfinite/a"] == 1
    assert optimizer.metrics()["agm/nonfinite/b"] == 0


@pytest.mark.parametrize(("max_gap", "largest"), [(2.0, 2.0), (10.0, 10.0)])
def test_the_gap_is_clamped_above_only(max_gap: float, largest: float) -> None:
    model = multimodal(dtype=torch.float64)
    optimizer = agm(model, max_gap=max_gap)
    optimizer._lifecycle.methods[0].load_state_dict({"mean_score": torch.tensor([0.0, 9.0]).double()})
    gradients_of(model, optimizer, *batches(model, 1, dtype=torch.float64))
    a, b = kappas(optimizer)
    assert a == pytest.approx(torch.tensor(largest).exp().item(), rel=1e-6)
    assert b < 1


# What it refuses


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alpha", 0),
        ("alpha", -1.0),
        ("max_gap", 0),
        ("p_min", -1e-8),
        ("p_min", 1.5),
        ("after_window", "stop"),
        ("clip_trigger", 0),
        ("clip_norm", -1),
        ("coalitions", "some"),
        ("masked_mode", "both"),
        ("masked_pass_grad", "yes"),
        ("include_current", None),
        ("recompute", "low"),
        ("start_epoch", -1),
    ],
)
def test_options_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"`{option}` of method `agm`"):
        balanced(multimodal(), "agm", **{option: value})


@pytest.mark.parametrize("coalitions", ["factored", "joined"])
def test_training_mode_excludes_forms_that_need_separate_samples(coalitions: str) -> None:
    with pytest.raises(ConfigError, match=r"should be 'full' or 'auto' beside masked_mode = 'train'"):
        agm(multimodal(), masked_mode="train", coalitions=coalitions)


def test_presets_differ_where_the_table_says_so() -> None:
    methods = [balanced(multimodal(), "agm", preset=preset)._lifecycle.methods[0] for preset in ("official", "paper")]
    official, paper = (
        [getattr(method, name) for name in ("max_gap", "p_min", "include_current", "clip_trigger", "after_window")]
        for method in methods
    )
    assert official == [10.0, 1e-8, False, 1.0, "reset"]
    assert paper == [None, 0.0, True, None, "reset"]


def test_a_model_is_needed() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "modality": name} for name in ("a", "b")]
    with pytest.raises(ConfigError, match=r"Method `agm` runs parts of the model itself. Found no model"):
        BalancedOptimizer(torch.optim.SGD(groups, lr=0.1), "agm")


def test_the_model_must_be_called_itself() -> None:
    model = multimodal()
    optimizer = agm(model)
    (inputs, target), *_ = batches(model, 1)
    logits = model.fusion(*(encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)))
    with pytest.raises(ObservationError, match="call the model itself, not its parts"):
        optimizer.criterion(LOSS)(logits, target)


def test_a_loss_that_is_computed_already_is_refused() -> None:
    model = multimodal()
    optimizer = agm(model)
    (inputs, target), *_ = batches(model, 1)
    logits = model(*inputs)
    with pytest.raises(ConfigError, match=r"`agm` replaces the logits.*instead of `opt.observe`"):
        optimizer.observe(LOSS(logits, target), logits=logits, target=target)
