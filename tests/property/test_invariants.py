"""Invariants for any number of modalities, head, batch size and option."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from modbalance import BalancedOptimizer, scores
from support.models import HEADS, ConcatFusion, MLPFusion, Multimodal
from support.reference import ogm_ge
from support.training import Batch, assert_close, assert_same, balanced, batches, multimodal, sgd, train, weights

pytestmark = pytest.mark.slow

SETTINGS = settings(deadline=None, derandomize=True, max_examples=25, phases=[Phase.generate, Phase.shrink])

NAMES = st.sampled_from(["ab", "abc", "abcd"])
ANY_HEAD = st.sampled_from(sorted(HEADS))
METHODS = st.sampled_from(["ogm", "ogm_ge"])
SIZES = st.integers(1, 5)
SEEDS = st.integers(0, 1000)
ALPHAS = st.sampled_from([0.1, 0.8, 2.0])


def doubles(names: str, head: str = "concat") -> Multimodal:
    return multimodal(names, head, dtype=torch.float64)


def coefficients(optimizer: BalancedOptimizer) -> dict[str, float]:
    parts = [(key.split("/"), value) for key, value in optimizer.metrics().items()]
    return {key[2]: value for key, value in parts if key[1] == "coefficient"}


# Order of modalities


def permuted(model: Multimodal, order: str) -> Multimodal:
    """Return the same function with its modalities in another order."""
    names = list(model.encoders)
    twin = copy.deepcopy(model)
    twin.encoders = nn.ModuleDict({name: twin.encoders[name] for name in order})
    first = {ConcatFusion: "fc_out.weight", MLPFusion: "0.weight"}
    for kind, path in first.items():
        if isinstance(twin.fusion, kind):
            weight = twin.fusion.get_parameter(path)
            blocks = weight.detach().split(weight.shape[1] // len(names), 1)
            weight.data = torch.cat([blocks[names.index(name)] for name in order], 1)
    return twin


@SETTINGS
@given(
    data=st.data(),
    names=NAMES,
    head=st.sampled_from(["concat", "mlp", "attention"]),
    size=SIZES,
    seed=SEEDS,
    ratio=st.sampled_from(["mean_others", "min"]),
)
def test_order_of_modalities_does_not_matter(
    data: st.DataObject, names: str, head: str, size: int, seed: int, ratio: str
) -> None:
    order = "".join(data.draw(st.permutations(names), "order"))
    model = doubles(names, head)
    other = permuted(model, order)
    one = balanced(model, ratio=ratio)
    two = balanced(other, ratio=ratio)
    for inputs, target in batches(model, 2, size, seed, torch.float64):
        by_name = dict(zip(names, inputs, strict=True))
        train(model, one, [(inputs, target)])
        ratios = [value for key, value in one.metrics().items() if "/ratio/" in key]
        assume(all(abs(value - 1) > 1e-6 for value in ratios))
        train(other, two, [(tuple(by_name[name] for name in order), target)])
        assert coefficients(two) == pytest.approx(coefficients(one), abs=1e-6)
    for name in names:
        assert_close(other.encoders[name], model.encoders[name], 1e-12)
    assert_close(permuted(model, order).fusion, other.fusion, 1e-12)


# What may be missing


@SETTINGS
@given(names=NAMES, head=ANY_HEAD, size=SIZES, seed=SEEDS, method=METHODS, frozen=st.integers(1, 15))
def test_frozen_encoders_stay_and_the_others_train(
    names: str, head: str, size: int, seed: int, method: str, frozen: int
) -> None:
    model, free = multimodal(names, head), multimodal(names, head)
    still = [name for index, name in enumerate(names) if frozen >> index & 1]
    assume(still)
    for name in still:
        model.encoders[name].requires_grad_(False)
    before = weights(model)
    data = batches(model, 1, size, seed)
    optimizer, reference = balanced(model, method), balanced(free, method)
    train(model, optimizer, data)
    train(free, reference, data)
    assert coefficients(optimizer) == coefficients(reference), "scores do not depend on what is trained"
    after = weights(model)
    for name, value in after.items():
        assert torch.equal(value, before[name]) == (name.split(".")[1] in still), name
    for name, value in weights(free).items():
        if method == "ogm" and name.split(".")[1] not in still:
            torch.testing.assert_close(after[name], value)


class Dropping(Multimodal):
    """Leaves out the encoder of one modality on request: its gradients are None."""

    def forward(self, *inputs: Tensor, drop: int | None = None) -> Tensor:
        features = [
            x.new_zeros(len(x), 4) if index == drop else encoder(x)
            for index, (encoder, x) in enumerate(zip(self.encoders.values(), inputs, strict=True))
        ]
        return self.fusion(*features)


@SETTINGS
@given(names=NAMES, head=ANY_HEAD, size=SIZES, seed=SEEDS, method=METHODS, drop=st.integers(0, 1))
def test_an_encoder_without_gradients_stays_in_that_step(
    names: str, head: str, size: int, seed: int, method: str, drop: int
) -> None:
    torch.manual_seed(seed)
    model = Dropping(names, head)
    optimizer = balanced(model, method)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    (first, target), (second, _), (third, _) = batches(model, 3, size, seed)
    for inputs, dropped in ((first, None), (second, drop), (third, None)):
        before = weights(model.encoders[names[drop]])
        optimizer.zero_grad()
        criterion(model(*inputs, drop=dropped), target).backward()
        optimizer.step()
        if dropped is not None:
            assert_same(model.encoders[names[drop]], before)
        assert set(coefficients(optimizer)) == set(names)
    assert all(value.isfinite().all() for value in weights(model).values())
    assert not torch.equal(before["0.weight"], model.get_parameter(f"encoders.{names[drop]}.0.weight"))


# Accumulation


@SETTINGS
@given(names=NAMES, head=ANY_HEAD, micro=st.integers(1, 3), k=st.integers(2, 4), seed=SEEDS, method=METHODS)
def test_micro_batches_equal_the_whole_batch(names: str, head: str, micro: int, k: int, seed: int, method: str) -> None:
    whole, parts = doubles(names, head), doubles(names, head)
    data = batches(whole, 2, micro * k, seed, torch.float64)
    train(whole, balanced(whole, method), data)

    optimizer = balanced(parts, method)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for inputs, target in data:
        optimizer.zero_grad()
        for *xs, y in zip(*(x.split(micro) for x in inputs), target.split(micro), strict=True):
            (criterion(parts(*xs), y) / k).backward()
        optimizer.step()
    assert_close(parts, whole, 1e-12)


# Interruption


class Training:
    """A loop with all that has state: momentum, schedule, epochs, noise."""

    def __init__(self, head: str, method: str, model_seed: int) -> None:
        self.model = multimodal(head=head, seed=model_seed)
        window: dict[str, Any] = {} if method == "none" else {"end_epoch": 2}
        self.optimizer = balanced(self.model, method, **window)
        self.scheduler = StepLR(self.optimizer, 1, 0.5)
        self.criterion = self.optimizer.criterion(nn.CrossEntropyLoss())

    def steps(self, data: list[Batch], start: int, stop: int) -> None:
        for index in range(start, stop):
            train(self.model, self.optimizer, [data[index]], self.criterion)
            if index % 2:
                self.scheduler.step()
                self.optimizer.end_epoch()

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        parts: list[Any] = [self.model, self.optimizer, self.scheduler]
        torch.save([part.state_dict() for part in parts], file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        model, optimizer, scheduler = torch.load(file, weights_only=True)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(scheduler)


@SETTINGS
@given(head=ANY_HEAD, method=st.sampled_from(["none", "ogm", "ogm_ge"]), stop=st.integers(0, 8), seed=SEEDS)
def test_resumed_equals_uninterrupted(head: str, method: str, stop: int, seed: int) -> None:
    data = batches(multimodal(), 8, seed=seed)
    whole = Training(head, method, 0)
    whole.steps(data, 0, 8)
    before = Training(head, method, 0)
    before.steps(data, 0, stop)
    after = Training(head, method, 1)
    after.load(before.save())
    assert after.optimizer.epoch == stop // 2
    after.steps(data, stop, 8)
    assert_same(after.model, whole.model)
    assert after.optimizer.state_dict()["modbalance"] == whole.optimizer.state_dict()["modbalance"]
    for ours, theirs in zip(after.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert torch.equal(ours["momentum_buffer"], theirs["momentum_buffer"])


# What must change nothing


def bare(names: str, head: str, data: list[Batch]) -> nn.Module:
    model = multimodal(names, head)
    return train(model, sgd(model), data)


@SETTINGS
@given(names=NAMES, head=ANY_HEAD, size=SIZES, method=METHODS, start=st.integers(0, 4), data=st.data())
def test_outside_the_window_it_is_the_inner_optimizer(
    names: str, head: str, size: int, method: str, start: int, data: st.DataObject
) -> None:
    end = data.draw(st.integers(start, 5), "end_epoch")
    epoch = data.draw(st.integers(0, 7).filter(lambda e: not start <= e <= end), "epoch")
    model = multimodal(names, head)
    drawn = batches(model, 2, size)
    optimizer = balanced(model, method, start_epoch=start, end_epoch=end)
    optimizer.epoch = epoch
    assert_same(train(model, optimizer, drawn), bare(names, head, drawn))

    inside = multimodal(names, head)
    optimizer = balanced(inside, method, start_epoch=start, end_epoch=end)
    optimizer.epoch = start
    with pytest.raises(AssertionError, match="differ"):
        assert_same(train(inside, optimizer, drawn), model)


@SETTINGS
@given(
    names=NAMES,
    head=ANY_HEAD,
    size=SIZES,
    how=st.sampled_from([{"method": "none"}, *({"method": m, "dry_run": True} for m in ("ogm", "ogm_ge"))]),
)
def test_none_and_dry_run_are_the_inner_optimizer(names: str, head: str, size: int, how: dict[str, Any]) -> None:
    model = multimodal(names, head)
    drawn = batches(model, 3, size)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    optimizer = balanced(model, **how)
    assert_same(train(model, optimizer, drawn), bare(names, head, drawn))
    assert torch.equal(torch.get_rng_state(), before)
    assert bool(optimizer.metrics()) == ("dry_run" in how)


# Statistics


def observed(
    unimodal: dict[str, Tensor],
    target: Tensor,
    present: dict[str, Tensor] | None = None,
    loss_fn: nn.Module | None = None,
    **options: Any,
) -> dict[str, float]:
    """Return the metrics of one step for given unimodal logits, without a model."""
    parameters = {name: nn.Parameter(torch.zeros(2, 2, dtype=torch.float64)) for name in unimodal}
    groups = [{"params": [p], "modality": name} for name, p in parameters.items()]
    optimizer = BalancedOptimizer(SGD(groups, lr=0.1), "ogm", param_filter="all", **options)
    logits = torch.stack(list(unimodal.values())).sum(0) + torch.stack([p.sum() for p in parameters.values()]).sum()
    criterion = optimizer.criterion(loss_fn or nn.CrossEntropyLoss())
    criterion(logits, target, unimodal_logits=unimodal, present=present).backward()
    optimizer.step()
    return optimizer.metrics()


def rows(names: str, size: int, classes: int = 3, seed: int = 0, spread: float = 2.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: spread * torch.randn(size, classes, generator=generator, dtype=torch.float64) for name in names}


def expected(sums: list[Tensor]) -> list[float]:
    return ogm_ge.coefficients(ogm_ge.ratios(sums), 0.8)


def of(metrics: dict[str, float], quantity: str) -> list[float]:
    return [value for key, value in metrics.items() if key.startswith(f"ogm/{quantity}/")]


@settings(SETTINGS, max_examples=150)
@given(
    names=NAMES,
    alpha=ALPHAS,
    ratio=st.sampled_from(["mean_others", "min"]),
    tie=st.sampled_from(["first", "none"]),
    shift=st.sampled_from([0, 1]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_coefficients_lie_between_0_and_1(
    names: str, alpha: float, ratio: str, tie: str, shift: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    logit = st.sampled_from([0.0, 0.0, 1.0, -1.0, 0.1, 30.0, -30.0, 1e4, -1e4])
    unimodal = {name: torch.tensor([data.draw(st.tuples(logit, logit, logit), name)], dtype=dtype) for name in names}
    metrics = observed(unimodal, torch.tensor([0]), alpha=alpha, ratio=ratio, tie=tie, ratio_shift=shift)
    found = of(metrics, "coefficient")
    assert len(found) == len(names)
    assert all(0 <= k <= 1 for k in found), found


@SETTINGS
@given(size=SIZES, seed=SEEDS, spread=st.sampled_from([0.0, 1.0, 50.0, 1e5]), dtype=st.sampled_from(["half", "float"]))
def test_scores_are_finite_and_counted(size: int, seed: int, spread: float, dtype: str) -> None:
    logits = rows("a", size, seed=seed, spread=spread)["a"].clamp(-6e4, 6e4).to(getattr(torch, dtype))
    target = torch.randint(3, (size,), generator=torch.Generator().manual_seed(seed))
    score, mask = scores.softmax()(logits, target)
    assert score.shape == (size,)
    assert score.isfinite().all()
    assert ((score >= 0) & (score <= 1)).all()
    assert mask is not None
    assert mask.all()


@SETTINGS
@given(names=NAMES, size=st.integers(2, 6), seed=SEEDS, data=st.data())
def test_ignored_targets_count_in_no_statistic(names: str, size: int, seed: int, data: st.DataObject) -> None:
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size), "kept"))
    ignore_index = data.draw(st.sampled_from([-100, 1, 255]), "ignore_index")
    assume(kept.any())
    unimodal = rows(names, size, seed=seed)
    labels = torch.randint(2, (size,), generator=torch.Generator().manual_seed(seed)) * 2
    metrics = observed(
        unimodal, labels.where(kept, ignore_index), loss_fn=nn.CrossEntropyLoss(ignore_index=ignore_index)
    )
    sums = [ogm_ge.score(o[kept], labels[kept]) for o in unimodal.values()]
    assert of(metrics, "coefficient") == pytest.approx(expected(sums), abs=1e-6)


def test_a_batch_of_ignored_targets_leaves_gradients_alone() -> None:
    metrics = observed(rows("ab", 3), torch.full((3,), -100), loss_fn=nn.CrossEntropyLoss(reduction="sum"))
    assert of(metrics, "coefficient") == [1, 1]
    assert of(metrics, "nonfinite") == [1, 1]


@SETTINGS
@given(names=NAMES, size=SIZES, seed=SEEDS)
def test_soft_targets_score_by_expectation(names: str, size: int, seed: int) -> None:
    unimodal = rows(names, size, seed=seed)
    target = rows("t", size, seed=seed + 1)["t"].softmax(1)
    sums = [(o.softmax(1) * target).sum() for o in unimodal.values()]
    metrics = observed(unimodal, target)
    assert of(metrics, "coefficient") == pytest.approx(expected(sums), abs=1e-6)
    assert of(metrics, "ratio") == pytest.approx([float(r) for r in ogm_ge.ratios(sums)], rel=1e-6)


@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_one_hot_targets_are_class_indices(size: int, seed: int) -> None:
    unimodal = rows("ab", size, seed=seed)
    labels = torch.randint(3, (size,), generator=torch.Generator().manual_seed(seed))
    assert observed(unimodal, F.one_hot(labels, 3).double()) == pytest.approx(observed(unimodal, labels), rel=1e-6)


@SETTINGS
@given(names=NAMES, size=st.integers(1, 6), seed=SEEDS, data=st.data())
def test_absent_samples_count_in_no_statistic(names: str, size: int, seed: int, data: st.DataObject) -> None:
    flags = st.lists(st.booleans(), min_size=size, max_size=size).filter(any)
    present = {name: torch.tensor(data.draw(flags, name)) for name in names}
    given_masks = {name: mask for name, mask in present.items() if not mask.all()}
    unimodal = rows(names, size, seed=seed)
    labels = torch.randint(3, (size,), generator=torch.Generator().manual_seed(seed))
    metrics = observed(unimodal, labels, present=given_masks)
    means = [
        ogm_ge.score(o[present[name]], labels[present[name]]) / int(present[name].sum()) for name, o in unimodal.items()
    ]
    assert of(metrics, "ratio") == pytest.approx([float(r) for r in ogm_ge.ratios(means)], rel=1e-5)
    assert of(metrics, "coefficient") == pytest.approx(expected(means), abs=1e-6)


def test_a_modality_absent_from_the_whole_batch_leaves_gradients_alone() -> None:
    metrics = observed(rows("ab", 3), torch.tensor([0, 1, 2]), present={"a": torch.zeros(3, dtype=torch.bool)})
    assert of(metrics, "coefficient") == [1, 1]
    assert of(metrics, "nonfinite") == [1, 1]


def test_nan_in_absent_samples_does_not_reach_the_statistics() -> None:
    unimodal, labels = rows("ab", 4), torch.tensor([0, 1, 2, 0])
    mask = torch.tensor([True, False, True, True])
    clean = observed(unimodal, labels, present={"a": mask})
    parameters = {name: nn.Parameter(torch.zeros(2, 2, dtype=torch.float64)) for name in "ab"}
    groups = [{"params": [p], "modality": name} for name, p in parameters.items()]
    optimizer = BalancedOptimizer(SGD(groups, lr=0.1), "ogm", param_filter="all")
    logits = sum(unimodal.values()) + torch.stack([p.sum() for p in parameters.values()]).sum()
    hidden = {"a": unimodal["a"].masked_fill(~mask.unsqueeze(1), torch.nan), "b": unimodal["b"]}
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    criterion(logits, labels, unimodal_logits=hidden, present={"a": mask}).backward()
    optimizer.step()
    assert optimizer.metrics() == clean
