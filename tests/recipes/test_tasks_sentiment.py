"""Sentiment metrics against plain loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from recipe_common.tasks.sentiment import (
    REGRESSION,
    ZEROS,
    binary_labels,
    regression_metrics,
    sentiment_binary,
    sentiment_regression,
    seven_labels,
)

TARGET = [-3.0, -1.5, -0.4, 0.0, 0.0, 0.0, 0.2, 0.5, 1.0, 2.5, 3.0, -2.0]
PREDICTION = [-4.1, 0.3, -0.1, 0.0, 0.7, -0.2, 0.0, 1.5, 0.9, 1.4, 7.0, 0.0]


def plain(prediction: list[float], target: list[float], zero: str) -> dict[str, float]:
    pairs = list(zip(prediction, target, strict=True))
    conventions = {
        "positive": [(p >= 0, t >= 0) for p, t in pairs],
        "negative": [(p > 0, t > 0) for p, t in pairs],
        "excluded": [(p > 0, t > 0) for p, t in pairs if t != 0],
    }
    names = {"positive": "acc2_zero_positive", "negative": "acc2_zero_negative", "excluded": "acc2_nonzero"}
    found = {names[name]: np.mean([p == t for p, t in classes]) for name, classes in conventions.items()}
    predicted, true = zip(*conventions[zero], strict=True)
    found["weighted_f1"] = f1_score(true, predicted, average="weighted")
    found["macro_f1"] = f1_score(true, predicted, average="macro")
    found["acc7"] = np.mean([round(max(-3, min(3, p))) == round(max(-3, min(3, t))) for p, t in pairs])
    found["acc5"] = np.mean([round(max(-2, min(2, p))) == round(max(-2, min(2, t))) for p, t in pairs])
    found["mae"] = np.mean([abs(p - t) for p, t in pairs])
    found["corr"] = np.corrcoef(prediction, target)[0, 1]
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_regression_metrics(zero: str, seed: int | None) -> None:
    prediction, target = PREDICTION, TARGET
    if seed is not None:
        random = np.random.default_rng(seed)
        prediction, target = random.normal(0, 2, 200).round(1).tolist(), (random.integers(-15, 16, 200) / 5).tolist()
    expected = plain(prediction, target, zero)
    for shape in ((-1,), (-1, 1)):
        found = regression_metrics(
            torch.tensor(prediction, dtype=torch.float64).reshape(shape), torch.tensor(target).reshape(shape), zero
        )
        assert list(found) == [metric.key for metric in REGRESSION]
        assert found == pytest.approx(expected, abs=1e-6)


def test_conventions_differ_by_the_neutral_segments() -> None:
    found = regression_metrics(torch.tensor([-0.1, 0.1, 1.0, -1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert (found["acc2_zero_positive"], found["acc2_zero_negative"], found["acc2_nonzero"]) == (0.5, 0.5, 0.5)
    found = regression_metrics(torch.tensor([0.1, 0.1, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert (found["acc2_zero_positive"], found["acc2_zero_negative"], found["acc2_nonzero"]) == (1.0, 0.5, 1.0)


def test_constant_predictions_and_neutral_targets_give_numbers() -> None:
    found = regression_metrics(torch.full((4,), 0.5), torch.zeros(4), "excluded")
    assert found["corr"] == 0.0
    assert found["acc2_nonzero"] == found["weighted_f1"] == 0.0
    assert all(math.isfinite(value) for value in found.values())


def test_halves_are_rounded_to_the_even_neighbour_as_numpy_does() -> None:
    halves = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    found = regression_metrics(torch.tensor(halves), torch.tensor(np.round(halves)))
    assert found["acc7"] == 1.0


@pytest.mark.parametrize(
    ("zero", "headline", "first"),
    [
        ("positive", None, "acc2_zero_positive"),
        ("negative", None, "acc2_zero_negative"),
        ("excluded", None, "acc2_nonzero"),
        ("negative", "mae", "mae"),
        ("positive", "corr", "corr"),
    ],
)
def test_the_headline_of_a_regression_can_be_chosen(zero: str, headline: str | None, first: str) -> None:
    task = sentiment_regression(zero, headline)
    assert task.headline.key == first
    assert {metric.key for metric in task.metrics} == {metric.key for metric in REGRESSION}
    assert task.score == "regression"
    assert task.chance == (0.5 if first.startswith("acc2") else None)
    prediction, target = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [-1.0]])
    assert task.loss()(prediction, target).item() == 0.5
    meter = task.meter()
    meter.update(prediction[:1], target[:1])
    meter.update(prediction[1:], target[1:])
    assert meter.compute() == regression_metrics(prediction, target, zero)
    better, worse = {f"val_{first}": 0.2, "val_loss": 1.0}, {f"val_{first}": 0.9, "val_loss": 1.0}
    assert (task.rank(better, "val") > task.rank(worse, "val")) == (first == "mae")


def test_classes_of_binary_sentiment() -> None:
    sentiment = torch.tensor([-1.0, 0.0, 2.0, 0.0, -0.2])
    expected = {
        "positive": ([0, 1, 1, 1, 0], [0, 1, 2, 3, 4]),
        "negative": ([0, 0, 1, 0, 0], [0, 1, 2, 3, 4]),
        "excluded": ([0, 1, 0], [0, 2, 4]),
    }
    for zero, (classes, rows) in expected.items():
        found, kept = binary_labels(sentiment, zero)
        assert found.dtype == torch.int64
        assert (found.tolist(), kept.tolist()) == (classes, rows)


def test_seven_classes_are_the_bins_of_agm() -> None:
    bins = {-3: 0, -2.01: 0, -2: 1, -1.2: 1, -1: 2, -0.01: 2, 0: 3, 0.2: 4, 1: 4, 1.01: 5, 2: 5, 2.4: 6, 3: 6}
    assert seven_labels(torch.tensor(list(bins))).tolist() == list(bins.values())
    assert seven_labels(torch.tensor([-3.4, 9.0])).tolist() == [0, 6]


def test_binary_task() -> None:
    random = np.random.default_rng(0)
    logits = torch.tensor(random.normal(size=(50, 2)), dtype=torch.float32)
    target = torch.tensor(random.integers(0, 2, 50))
    task = sentiment_binary("negative")
    assert task.headline.key == "accuracy"
    assert task.headline.title == "Acc-2, 0 negative"
    assert task.chance == 0.5
    meter = task.meter()
    meter.update(logits, target)
    predicted = logits.argmax(1).numpy()
    assert meter.compute() == pytest.approx(
        {
            "accuracy": (predicted == target.numpy()).mean(),
            "macro_f1": f1_score(target, predicted, average="macro"),
            "weighted_f1": f1_score(target, predicted, average="weighted"),
        }
    )
    assert task.loss()(logits, target).item() == pytest.approx(nn.functional.cross_entropy(logits, target).item())


def test_the_loss_of_the_binary_task_can_be_another() -> None:
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    one, other = nn.functional.cross_entropy(logits, target, reduction="none").tolist()
    summed = sentiment_binary(loss=lambda: nn.CrossEntropyLoss(reduction="sum")).loss()
    assert summed(logits, target).item() == pytest.approx(one + other)


def test_what_is_not_possible_is_named() -> None:
    with pytest.raises(ValueError, match=r"`zero` should be one of positive, negative, excluded. Found `zero = 'no'`"):
        sentiment_binary("no")
    with pytest.raises(ValueError, match="`headline` should be one of acc2_zero_positive"):
        sentiment_regression(headline="top1")
    with pytest.raises(ValueError, match="`zero` should be one of"):
        binary_labels(torch.zeros(1), "no")
