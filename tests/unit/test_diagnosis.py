"""Diagnosis of a model: each measure against a slow twin, nothing is changed, messages for mistakes."""

from __future__ import annotations

import builtins
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from modbalance import BalancedOptimizer, ConfigError, Diagnosis, diagnose, list_methods
from modbalance.diagnosis import _shapley as shapley
from modbalance.diagnosis._advice import Suggestion
from modbalance.diagnosis._gradients import cosine
from modbalance.diagnosis._probe import fit, probe_accuracy
from modbalance.diagnosis._verdict import degree_of, utilisation, verdict_of
from support.models import Multimodal
from support.training import balanced, batches, multimodal, sgd

ROOT = Path(__file__).parents[2]
Items = list[tuple[Tensor, ...]]


def items_for(model: Multimodal, count: int = 3, size: int = 12) -> Items:
    return [(*inputs, target) for inputs, target in batches(model, count, size)]


def diagnosed(model: Multimodal, items: Any, **options: Any) -> Diagnosis:
    return diagnose(model, items, modalities=model.paths, fusion="fusion", **options)


# Shapley values


def random_values(names: Sequence[str]) -> dict[tuple[str, ...], Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {S: torch.randn(5, generator=generator, dtype=torch.float64) for S in shapley.subsets(names)}


def by_permutations(values: dict[tuple[str, ...], Tensor], names: Sequence[str], i: str) -> Tensor:
    """Return the Shapley value as the mean gain over all M! orders."""
    gains = []
    for order in permutations(names):
        before = [name for name in names if order.index(name) < order.index(i)]
        gains.append(values[tuple(n for n in names if n in before or n == i)] - values[tuple(before)])
    return torch.stack(gains).mean(0)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_exact_values_are_the_mean_over_all_permutations(count: int) -> None:
    names = "abcd"[:count]
    values = random_values(names)

    found = shapley.exact(values, names)

    for i in names:
        torch.testing.assert_close(found[i], by_permutations(values, names, i), rtol=0, atol=1e-12)
    torch.testing.assert_close(sum(found.values()), values[tuple(names)] - values[()], rtol=0, atol=1e-12)


def test_sampled_values_lie_within_their_standard_errors() -> None:
    names = "abcde"
    values, orders = random_values(names), shapley.orders_of("abcde", 400, seed=0)

    gains = shapley.sampled(values, names, orders)

    for i, value in shapley.exact(values, names).items():
        error = gains[i].std(0) / math.sqrt(len(orders))
        assert bool(((gains[i].mean(0) - value).abs() < 4 * error).all())
        assert shapley.standard_error(gains[i][:, 0]) == pytest.approx(float(error[0]))


def test_all_permutations_sampled_once_give_the_exact_values() -> None:
    values = random_values("abc")

    gains = shapley.sampled(values, "abc", [*permutations("abc")])

    for i, value in shapley.exact(values, "abc").items():
        torch.testing.assert_close(gains[i].mean(0), value)


@pytest.mark.parametrize("count", [2, 3])
def test_values_of_a_model_are_those_of_its_accuracies(count: int) -> None:
    model = multimodal("abc"[:count])
    items, names = items_for(model), tuple(model.paths)
    accuracy = {}
    with torch.no_grad():
        for S in shapley.subsets(names):
            hits = [
                model(*(x if name in S else 0 * x for name, x in zip(names, inputs, strict=True))).argmax(1) == target
                for *inputs, target in items
            ]
            accuracy[S] = torch.cat(hits).double()

    found = diagnosed(model.train(), items)

    for name in names:
        expected = by_permutations(accuracy, names, name)
        assert found.modalities[name].shapley == pytest.approx(float(expected.mean()), abs=1e-12)
        assert found.modalities[name].shapley_error == pytest.approx(float(expected.std() / math.sqrt(36)))
    assert found.fused == pytest.approx(float(accuracy[names].mean()))


def test_each_coalition_is_computed_once_for_a_batch() -> None:
    model, calls = multimodal("abc"), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))

    diagnosed(model, items_for(model, 2), gradient_batches=0)

    assert len(calls) == 2 * 2**3  # that of all modalities is the forward itself


def test_beyond_four_modalities_values_are_sampled() -> None:
    model = multimodal("abcde")

    found = diagnosed(model, items_for(model), permutations=8)

    assert not found.is_exact
    assert "Shapley value, sampled" in str(found)
    assert any(each.shapley_error > 0 for each in found.modalities.values())


# Modalities alone


def test_ways_to_obtain_the_logits_of_one_modality() -> None:
    model = multimodal("ab")
    (*inputs, target), *_ = items = items_for(model, 1)
    with torch.no_grad():
        a, b = (encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True))
        expected = {
            "zero": model.fusion(a, torch.zeros_like(b)),
            "mean": model.fusion(a, b.mean(0, keepdim=True).expand_as(b)),
            "inputs": model(inputs[0], torch.zeros_like(inputs[1])),
        }
        whole = model.fusion(torch.zeros_like(a), torch.zeros_like(b))
        expected["slice"] = expected["zero"] - whole / 2

    found = diagnosed(model, items).modalities["a"].alone

    assert [*found] == ["slice", "zero", "mean", "permuted", "inputs"]
    for way, logits in expected.items():
        assert found[way] == pytest.approx(float((logits.argmax(1) == target).double().mean()))


def test_own_heads_come_first_and_a_model_without_fusion_has_its_inputs() -> None:
    model = multimodal("ab", "gated")
    heads = {name: nn.Linear(4, 3) for name in "ab"}
    items = items_for(model)

    own = diagnosed(model, items, unimodal=heads)
    bare = diagnose(model, items, modalities=model.paths)

    assert own.way == "own"
    assert bare.way == "inputs"
    assert [*bare.modalities["a"].alone] == ["inputs"]


# Gradients


def test_norms_and_cosines_are_those_of_plain_backwards() -> None:
    model = multimodal("ab")
    items = items_for(model)
    weights = {name: [*model.encoders[name].parameters()] for name in "ab"}

    def gradient(loss_of: Any, parameters: Sequence[Tensor]) -> Tensor:
        loss = torch.stack([loss_of(*item) for item in items]).mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        return torch.cat([g.flatten() for g in parts]).double()

    def fused(a: Tensor, b: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(model(a, b), target)

    def own(name: str) -> Any:
        def loss(a: Tensor, b: Tensor, target: Tensor) -> Tensor:
            features = {"a": model.encoders["a"](a), "b": model.encoders["b"](b)}
            kept = [f if each == name else 0 * f for each, f in features.items()]
            nothing = model.fusion(*(torch.zeros_like(f) for f in features.values()))
            return F.cross_entropy(model.fusion(*kept) - nothing / 2, target)

        return loss

    found = diagnosed(model, items)

    norms = {name: float(gradient(fused, weights[name]).norm()) for name in "ab"}
    for name in "ab":
        each = found.modalities[name]
        assert each.gradient_norm == pytest.approx(norms[name], rel=1e-5)
        assert each.gradient_share == pytest.approx(norms[name] / sum(norms.values()), rel=1e-5)
        expected = cosine(gradient(fused, weights[name]), gradient(own(name), weights[name]))
        assert each.cosine_with_fused == pytest.approx(expected, abs=1e-5)
    head = [*model.fusion.parameters()]
    expected = cosine(gradient(own("a"), head), gradient(own("b"), head))
    assert found.cosine_between["a", "b"] == pytest.approx(expected, abs=1e-5)


def test_a_frozen_encoder_has_no_share() -> None:
    model = multimodal("ab")
    model.encoders["a"].requires_grad_(False)

    found = diagnosed(model, items_for(model))

    assert found.modalities["a"].gradient_share == 0
    assert math.isnan(found.modalities["a"].cosine_with_fused or 0.0)


# Linear probe


def test_the_probe_separates_what_is_linear_and_not_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(120) % 3
    told = F.one_hot(label, 3).float() + 0.1 * torch.randn(120, 3, generator=generator)

    assert probe_accuracy(told, label, seed=0) == 1
    assert probe_accuracy(torch.randn(120, 3, generator=generator), label, seed=0) < 0.5


def test_the_fit_is_that_of_plain_gradient_descent() -> None:
    features, label = torch.randn(40, 2), torch.arange(40) % 3
    weight, bias = torch.zeros(2, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    for _ in range(3000):
        loss = F.cross_entropy(features @ weight + bias, label) + 0.5e-3 * weight.square().sum()
        found = torch.autograd.grad(loss, [weight, bias])
        with torch.no_grad():
            weight -= 0.5 * found[0]
            bias -= 0.5 * found[1]

    fitted = fit(features, label, 3)

    torch.testing.assert_close(fitted[0], weight.detach(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(fitted[1], bias.detach(), atol=1e-3, rtol=1e-3)


# Verdict


def test_degree_and_utilisation() -> None:
    assert degree_of({"a": 0.3, "b": 0.3}) == 0
    assert degree_of({"a": 0.2, "b": 0.1}) == pytest.approx(1 / 3)
    assert degree_of({"a": 0.2, "b": -0.1}) == 1
    assert math.isnan(degree_of({"a": -0.2, "b": -0.1}))
    assert utilisation(0.55, 1.0, 0.1) == pytest.approx(0.5)
    assert math.isnan(utilisation(0.55, 0.1, 0.1))


def test_a_weak_modality_at_its_ceiling_is_not_starved() -> None:
    contribution = {"a": 0.1, "b": 0.6}

    assert verdict_of(contribution, 0.01, {}, {}).starved == "a"
    weak = verdict_of(contribution, 0.01, {"a": 0.95}, {"a": 0.01}, -0.3)
    assert (weak.starved, weak.findings) == (None, ("dominated", "conflict"))
    assert "weak" in weak.reason


@pytest.mark.parametrize(("cosine", "is_named"), [(math.nan, False), (0.2, False), (-0.05, False), (-0.25, True)])
def test_a_conflict_alone_is_in_the_reason(cosine: float, is_named: bool) -> None:
    verdict = verdict_of({"a": 0.3, "b": 0.3}, 0.01, {}, {}, cosine)
    assert verdict.findings == (("conflict",) if is_named else ())
    assert verdict.reason.endswith("; gradients conflict, with a cosine of -0.25") is is_named


def test_a_starved_modality_below_its_ceiling() -> None:
    assert verdict_of({"a": 0.3, "b": 0.4}, 0.01, {"a": 0.5}, {"a": 0.01}).starved == "a"


def test_a_difference_within_its_errors_is_no_imbalance() -> None:
    assert not verdict_of({"a": 0.1, "b": 0.3}, 0.11, {}, {}).is_imbalanced
    assert verdict_of({"a": 0.1, "b": 0.3}, 0.09, {}, {}).is_imbalanced


# Nothing is changed


@pytest.mark.parametrize("training", [True, False])
def test_model_and_random_states_stay_as_they_were(training: bool) -> None:
    net = multimodal("ab")
    model: nn.Module = net
    net.encoders["a"] = nn.Sequential(net.encoders["a"], nn.BatchNorm1d(4), nn.Dropout())
    model.train(training)
    net.encoders["b"].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    data = TensorDataset(*(torch.cat(column) for column in zip(*items_for(net), strict=True)))
    loader = DataLoader(data, batch_size=9, shuffle=True)

    def state() -> list[Any]:
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
        flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        needs = [p.requires_grad for p in model.parameters()]
        states = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
        return [[t.clone().tolist() for t in tensors if t is not None], flags, needs, states]

    before = state()
    diagnosed(net, loader)

    assert state() == before


def test_a_diagnosis_in_training_changes_nothing_in_it() -> None:
    weights = []
    for with_diagnosis in (False, True):
        model = multimodal("ab", seed=3)
        optimizer = balanced(model, "ogm_ge", sgd(model))
        criterion = optimizer.criterion(nn.CrossEntropyLoss())
        for inputs, target in batches(model, 4):
            optimizer.zero_grad()
            criterion(model(*inputs), target).backward()
            if with_diagnosis:
                optimizer.diagnose(items_for(model))
            optimizer.step()
        weights.append(model.state_dict())

    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_optimizer_without_a_method_gives_the_diagnosis_alone() -> None:
    model = multimodal("ab")
    items = items_for(model)
    optimizer = balanced(model, "none")
    optimizer.criterion(nn.CrossEntropyLoss())

    found = optimizer.diagnose(items)

    assert (found.epoch, found.quantity) == (0, "accuracy")
    assert found.to_dict() == diagnosed(model, items, epoch=0).to_dict()


def test_the_score_of_the_criterion_is_that_of_the_diagnosis() -> None:
    model = multimodal("ab")
    items: Items = [(*inputs, torch.rand(12, 3)) for *inputs, _ in items_for(model)]
    optimizer = balanced(model, "none")
    optimizer.criterion(nn.MSELoss(), score="regression")

    found = optimizer.diagnose(items)

    assert found.quantity == "score"
    with torch.no_grad():
        expected = torch.cat([(-0.5 * (model(*x) - y).square()).exp() for *x, y in items]).mean()
    assert found.fused == pytest.approx(float(expected), rel=1e-6)
    assert found.modalities["a"].probe is None


# Speed, options


def test_speed_is_the_change_per_epoch() -> None:
    model = multimodal("ab")
    items = items_for(model)
    first = diagnosed(model, items, epoch=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()

    second = diagnosed(model, items, epoch=6, history=[first])

    change = second.modalities["a"].alone["slice"] - first.modalities["a"].alone["slice"]
    assert second.modalities["a"].speed == pytest.approx(change / 4)
    assert first.modalities["a"].speed is None


def test_max_batches_bounds_what_is_read() -> None:
    model, read = multimodal("ab"), []

    class Counting:
        def __iter__(self) -> Iterator[Any]:
            for item in items_for(model, 5):
                read.append(1)
                yield item

    found = diagnosed(model, Counting(), max_batches=2)

    assert (found.samples, found.batches, len(read)) == (24, 2, 4)


def test_progress_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model = multimodal("ab")
    diagnosed(model, items_for(model))
    assert capsys.readouterr().err == ""

    diagnosed(model, items_for(model), progress=True)
    assert "linear probes" in capsys.readouterr().err


# Report


def test_json_is_strict_and_complete() -> None:
    model = multimodal("ab")
    model.encoders["a"].requires_grad_(False)

    found = json.loads(diagnosed(model, items_for(model), ceilings={"a": 0.5}).to_json())

    assert found["modalities"]["a"]["cosine_with_fused"] is None  # NaN
    assert found["modalities"]["a"]["ceiling"] == 0.5
    assert found["cosine_between"][0]["modalities"] == ["a", "b"]
    assert set(found["verdict"]) == {"degree", "is_imbalanced", "starved", "reason", "findings"}


def test_the_picture_is_written_and_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = multimodal("ab")
    found = diagnosed(model, items_for(model), ceilings={"a": 0.5})
    assert found.save_picture(tmp_path / "found.png").stat().st_size > 10_000

    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="needs matplotlib"):
        found.save_picture(tmp_path / "other.png")


def test_a_method_that_suits_two_findings_is_named_once_with_both_reasons() -> None:
    model = multimodal("ab")
    suggestions = (
        Suggestion("dgl", "starved", "Trains each encoder by its own loss.", 1.05),
        Suggestion("dgl", "conflict", "Keeps the fused gradient away.", 1.05),
    )
    table = str(attrs.evolve(diagnosed(model, items_for(model)), suggestions=suggestions))

    rows = [re.split(" *│ *", line)[1:-1] for line in table.splitlines()[-3:-1]]
    assert rows == [["dgl", "1.05", "Trains each encoder by its own loss."], ["", "", "Keeps the fused gradient away."]]


def test_costs_of_methods_are_those_of_the_sheet() -> None:
    sheet = (ROOT / "docs" / "benchmarks" / "cpu.md").read_text(encoding="utf-8")
    measured = {name: float(cost) for name, cost in re.findall(r"^\| pair \| (\w+) \| ([\d.]+)", sheet, re.MULTILINE)}
    methods = {each.name: each.method for each in list_methods() if each.distribution == "modbalance" and each.method}

    assert {name: method.step_cost for name, method in methods.items() if name in measured} == pytest.approx(
        {name: cost for name, cost in measured.items() if name in methods}, rel=0.1
    )
    assert all(set(method.suits) <= {"starved", "dominated", "conflict"} for method in methods.values())


# Mistakes


def broken(item: tuple[Tensor, ...], number: int) -> tuple[Tensor, ...]:
    target = item[-1].clone()
    target[0] = number
    return (*item[:-1], target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: [], "should yield batches. Found none"),
        (lambda items: [items[0][0]], "should be a tuple or list.*Found Tensor"),
        (lambda items: [items[0], broken(items[0], 3)], r"lie in \[0, 2\].*Found 0 to 3 in batch 1"),
        (lambda items: [(items[0][0] * math.nan, *items[0][1:])], "finite. Found NaN.*in 12 of 12 samples of batch 0"),
        (lambda items: [(*items[0][:-1], items[0][-1].float())], "class indices"),
    ],
)
def test_faults_of_batches_are_named(change: Any, message: str) -> None:
    model = multimodal("ab")

    with pytest.raises(ConfigError, match=message):
        diagnosed(model, change(items_for(model)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ceilings": {"sound": 0.5}}, "should name modalities. Found 'sound'"),
        ({"ceilings": {"a": 61}}, r"accuracies in \[0, 1\]. Found 'a': 61"),
        ({"max_batches": 0}, "`max_batches` should be an integer >= 1"),
        ({"permutations": 1}, "`permutations` should be an integer >= 2"),
        ({"score": "accuracy"}, "`score` should be"),
        ({"forward": lambda model, batch: model(*batch[:-1])}, "one tensor of logits and the target for batch 0"),
        ({"forward": lambda model, batch: (batch[0], batch[-1])}, "Labels|call of Multimodal"),
    ],
)
def test_faults_of_arguments_are_named(options: dict[str, Any], message: str) -> None:
    model = multimodal("ab")

    with pytest.raises((ConfigError, RuntimeError), match=message):
        diagnosed(model, items_for(model), **options)
    assert not model.fusion._forward_pre_hooks


def test_one_modality_or_an_unknown_path_is_refused() -> None:
    model = multimodal("ab")

    with pytest.raises(ConfigError, match="two modalities or more"):
        diagnose(model, items_for(model), modalities={"a": "encoders.a"})
    with pytest.raises(ConfigError, match="names no submodule"):
        diagnose(model, items_for(model), modalities={"a": "encoders.a", "b": "encoders.x"})


def test_earlier_diagnoses_must_be_of_this_model() -> None:
    model, other = multimodal("ab"), multimodal("ac")
    first = diagnosed(other, items_for(other), epoch=0)

    with pytest.raises(ConfigError, match="diagnoses of this model"):
        diagnosed(model, items_for(model), epoch=1, history=[first])
    with pytest.raises(ConfigError, match="earlier epochs"):
        diagnosed(other, items_for(other), epoch=0, history=[first])


def test_an_optimizer_without_a_model_says_so() -> None:
    model = multimodal("ab")
    groups = [{"params": [*model.encoders[name].parameters()], "modality": name} for name in "ab"]
    optimizer = BalancedOptimizer(torch.optim.SGD(groups, lr=0.1), "none")

    with pytest.raises(ConfigError, match="needs a model"):
        optimizer.diagnose(items_for(model))
