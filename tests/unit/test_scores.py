"""Scores per task, and comparison of scores beyond rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer, Batch, ConfigError, scores
from support.batch_spy import look_once
from support.operation_counts import CountOps
from support.training import batches, multimodal


def test_softmax_probability_of_the_target() -> None:
    logits = torch.tensor([[math.log(1.0), math.log(3.0)], [math.log(4.0), math.log(1.0)]])
    score, mask = scores.softmax()(logits, torch.tensor([1, 1]))
    torch.testing.assert_close(score, torch.tensor([0.75, 0.2]))
    assert mask is not None
    assert mask.all()


@pytest.mark.parametrize("trailing", [(), (4,), (4, 5)])
def test_softmax_over_dim_1_with_any_trailing_dimensions(trailing: tuple[int, ...]) -> None:
    logits = torch.randn(2, 3, *trailing)
    target = torch.randint(3, (2, *trailing))
    score, _ = scores.softmax()(logits, target)
    assert score.shape == target.shape
    flat = logits.movedim(1, -1).reshape(-1, 3).softmax(-1)
    expected = [row[label].item() for row, label in zip(flat, target.flatten().tolist(), strict=True)]
    assert score.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_class_indices_of_any_integer_type(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 3)
    target = torch.tensor([0, 1, 2, 1])
    score, mask = scores.softmax()(logits, target.to(dtype))
    assert torch.equal(score, scores.softmax()(logits, target)[0])
    assert mask is not None
    assert mask.all()


@pytest.mark.parametrize("ignore_index", [-100, 255, 1])
def test_ignored_elements_are_masked(ignore_index: int) -> None:
    logits = torch.randn(3, 3, 2)
    target = torch.tensor([[0, ignore_index], [2, 0], [ignore_index, ignore_index]])
    score, mask = scores.softmax(ignore_index)(logits, target)
    assert mask is not None
    assert mask.tolist() == [[True, False], [True, True], [False, False]]
    kept = scores.softmax()(logits[:, :, 0], torch.tensor([0, 2, 0]))[0]
    assert torch.equal(score[:2, 0], kept[:2])
    assert score.isfinite().all()


def test_soft_targets_by_expectation() -> None:
    logits, target = torch.randn(4, 3, 2), torch.randn(4, 3, 2).softmax(1)
    score, mask = scores.softmax()(logits, target)
    torch.testing.assert_close(score, sum(logits.softmax(1)[:, c] * target[:, c] for c in range(3)))
    assert mask is None


def test_double_precision_is_kept_and_half_precision_widened() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 0])
    score, _ = scores.softmax()(logits, target)
    torch.testing.assert_close(score, logits.softmax(1)[torch.arange(4), target], rtol=1e-14, atol=0)
    assert scores.softmax()(logits.half(), target)[0].dtype == torch.float32
    assert scores.softmax()(logits.bfloat16(), target)[0].dtype == torch.float32
    exact = logits.sigmoid()
    torch.testing.assert_close(scores.binary(logits, torch.ones_like(logits))[0], exact, rtol=1e-14, atol=0)
    likelihood = (-0.5 * logits**2).exp()
    torch.testing.assert_close(scores.regression(logits, 0 * logits)[0], likelihood, rtol=1e-14, atol=0)


def test_binary() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(3.0), -200.0]])
    score, mask = scores.binary(logits, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(score, torch.tensor([[0.5, 0.75], [0.25, 1.0]]))
    assert mask is None


def test_multilabel_is_the_mean_over_labels() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(3.0), -200.0]])
    score, _ = scores.multilabel(logits, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(score, torch.tensor([0.625, 0.625]))


def test_multilabel_takes_integer_and_boolean_targets() -> None:
    logits, target = torch.randn(3, 4), torch.tensor([[1, 0, 1, 0]] * 3)
    expected = scores.multilabel(logits, target.float())[0]
    assert torch.equal(scores.multilabel(logits, target)[0], expected)
    assert torch.equal(scores.multilabel(logits, target.bool())[0], expected)


def test_regression_is_a_likelihood() -> None:
    prediction, target = torch.tensor([1.0, 2.0, 50.0]), torch.tensor([1.0, 0.0, 0.0])
    score, mask = scores.regression(prediction, target)
    torch.testing.assert_close(score, torch.tensor([1.0, math.exp(-2.0), 0.0]))
    assert mask is None


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), r"\(B, C"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.long), r"shape \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4), "float32"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.bool), "bool"),
        (torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.long), r"shape \(4, 2\)"),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.long), "class indices"),
    ],
)
def test_targets_that_are_no_classes_are_refused(logits: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scores.softmax()(logits, target)


@pytest.mark.parametrize("score", [scores.binary, scores.multilabel, scores.regression])
def test_targets_of_another_shape_are_refused(score: scores.Score) -> None:
    with pytest.raises(ConfigError, match=r"\(4, 3\)"):
        score(torch.zeros(4, 3), torch.zeros(4))


# From the criterion to the score


def test_an_unknown_score_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="regression"):
        scores.resolve("regresion", nn.MSELoss())


def test_the_loss_tells_which_index_is_ignored() -> None:
    score = scores.resolve(None, nn.CrossEntropyLoss(ignore_index=2))
    _, mask = score(torch.zeros(2, 3), torch.tensor([2, 1]))
    assert mask is not None
    assert mask.tolist() == [False, True]


@pytest.mark.parametrize(("score", "loss_fn"), [("binary", nn.BCEWithLogitsLoss()), ("regression", nn.MSELoss())])
def test_a_preset_trains(score: str, loss_fn: nn.Module) -> None:
    parameters = {name: nn.Parameter(torch.zeros(2, 2)) for name in "ab"}
    groups: list[dict[str, Any]] = [{"params": [p], "modality": name} for name, p in parameters.items()]
    optimizer = BalancedOptimizer(torch.optim.SGD(groups, lr=0.1), "ogm", param_filter="all", alpha=0.5)
    unimodal = {"a": torch.tensor([[2.0], [1.0]]), "b": torch.tensor([[0.5], [-1.0]])}
    target = torch.tensor([[1.0], [1.0]])
    logits = unimodal["a"] + unimodal["b"] + sum(p.sum() for p in parameters.values())
    optimizer.criterion(loss_fn, score=score)(logits, target, unimodal_logits=unimodal).backward()
    optimizer.step()
    value = getattr(scores, score)
    rho = (value(unimodal["a"], target)[0].sum() / value(unimodal["b"], target)[0].sum()).item()
    assert optimizer.metrics()["ogm/ratio/a"] == pytest.approx(rho, rel=1e-5)
    assert optimizer.metrics()["ogm/coefficient/a"] == pytest.approx(1 - math.tanh(0.5 * rho), rel=1e-5)


def test_a_callable_score_gets_logits_and_target() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]

    def look(batch: Batch) -> tuple[Tensor, Tensor]:
        batch.scorer = lambda logits, labels: (logits[:, 0] * labels, labels > 0)
        return batch.score(batch.logits)

    total, count = look_once(model, look, inputs, target)
    expected = (model(*inputs)[:, 0] * target)[target > 0].sum()
    torch.testing.assert_close(total, expected.detach())
    assert count == (target > 0).sum()
    assert not total.requires_grad


def test_nothing_is_lost_where_all_elements_count() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]
    total, count = look_once(model, lambda batch: batch.score(batch.logits), inputs, target)
    assert count == 6
    torch.testing.assert_close(total, model(*inputs).softmax(1)[torch.arange(6), target].sum().detach())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"c": torch.ones(6, dtype=torch.bool)}, "c"),
        ({"a": torch.ones(6)}, "float32"),
        ({"a": torch.ones(5, dtype=torch.bool)}, r"\(5,\)"),
    ],
)
def test_masks_of_presence_are_checked(masks: dict[str, Tensor], message: str) -> None:
    model = multimodal()
    described: dict[str, Any] = {"model": model, "modalities": model.paths, "fusion": "fusion", "param_filter": "all"}
    optimizer = BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), "ogm", **described)
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match=message):
        optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target, present=masks)


def test_presence_covers_all_positions_of_a_sample() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]

    def look(batch: Batch) -> tuple[Tensor, Tensor]:
        batch.present = {"a": torch.tensor([True, False, True, True, True, False])}
        batch.target = target.unsqueeze(1).expand(-1, 4)
        return batch.score(batch.logits.unsqueeze(2).expand(-1, -1, 4), "a")

    total, count = look_once(model, look, inputs, target)
    kept = [0, 2, 3, 4]
    expected = model(*inputs).softmax(1)[kept, target[kept]].sum() * 4
    torch.testing.assert_close(total, expected.detach())
    assert count == 16


# Comparison beyond rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [1e-30, 0.3, 1.0, 7e20])
def test_clearly_greater_is_beyond_rounding(dtype: torch.dtype, number: float) -> None:
    exact = torch.tensor(number, dtype=dtype)
    unit = torch.finfo(dtype).eps
    assert not scores.clearly_greater(exact, exact)
    assert not scores.clearly_greater(torch.nextafter(exact, exact * 2), exact)
    assert not scores.clearly_greater(exact * (1 + 16 * unit), exact)
    assert scores.clearly_greater(exact * (1 + 64 * unit), exact)
    assert not scores.clearly_greater(exact, exact * (1 + 64 * unit))
    assert scores.clearly_greater(-exact, -exact * (1 + 64 * unit))
    assert not scores.clearly_greater(-exact, -exact * (1 + 16 * unit))


def test_clearly_greater_compares_infinity_and_nothing_with_nan() -> None:
    values = torch.tensor([math.inf, 1.0, -math.inf, math.nan])
    expected = [[False, True, True, False], [False, False, True, False], [False] * 4, [False] * 4]
    assert scores.clearly_greater(values[:, None], values).tolist() == expected
    numbers = values.tolist()
    assert [[scores.clearly_greater(a, b) for b in numbers] for a in numbers] == expected
    assert [[scores.clearly_greater(a, b).item() for b in numbers] for a in values] == expected
    assert [[scores.clearly_greater(a, b).item() for b in values] for a in numbers] == expected


def test_clearly_greater_takes_the_coarser_precision() -> None:
    near = 1 + 1e-6
    assert scores.clearly_greater(near, 1)
    assert not scores.clearly_greater(near, 1, torch.float32)
    assert not scores.clearly_greater(torch.tensor(near, dtype=torch.float64), torch.tensor(1.0))
    assert scores.clearly_greater(torch.tensor(1.01, dtype=torch.bfloat16), torch.tensor(1.0, dtype=torch.bfloat16))


def test_any_positive_number_is_clearly_greater_than_zero() -> None:
    assert scores.clearly_greater(torch.tensor([1e-30, 0.0, -1.0]), 0).tolist() == [True, False, False]


# Scores of all modalities at once


@pytest.mark.parametrize("trailing", [(), (3, 2)])
@pytest.mark.parametrize(
    "make",
    [
        lambda shape: torch.randint(4, shape),
        lambda shape: torch.randint(4, shape).masked_fill(torch.rand(shape) < 0.5, -100),
        lambda shape: torch.rand(shape[0], 4, *shape[1:]).softmax(1),
    ],
    ids=["indices", "some ignored", "probabilities"],
)
@pytest.mark.parametrize("presence", [{}, {"b": torch.tensor([True, False, True, True, False])}])
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_scores_of_all_modalities_are_those_of_each(
    trailing: tuple[int, ...],
    make: Callable[[tuple[int, ...]], Tensor],
    presence: dict[str, Tensor],
    limit: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scores, "_LARGE", limit)
    target = make((5, *trailing))
    logits = {name: torch.randn(5, 4, *trailing) for name in "abc"}
    optimizer = BalancedOptimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), "none")
    batch = Batch(optimizer._lifecycle.run, target=target, scorer=scores.softmax(), present=presence)

    for of in (None, lambda probability: probability.double().log()):
        totals, counts = batch.scores(logits, of)
        expected = [batch.score(each, name, of) for name, each in logits.items()]
        assert totals.equal(torch.stack([total for total, _ in expected]))
        assert counts.equal(torch.stack([count for _, count in expected]))


def test_one_softmax_scores_all_modalities() -> None:
    optimizer = BalancedOptimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), "none")
    batch = Batch(optimizer._lifecycle.run, target=torch.zeros(5, dtype=torch.long), scorer=scores.softmax())
    with CountOps() as counted:
        batch.scores({name: torch.randn(5, 4) for name in "abc"})
    assert counted.ops["aten._softmax.default"] == 1


def test_targets_that_are_no_classes_are_refused_for_all_modalities_at_once() -> None:
    with pytest.raises(ConfigError, match="class indices"):
        scores.of_each(scores.softmax(), [torch.zeros(2, 3)] * 2, torch.zeros(2))
