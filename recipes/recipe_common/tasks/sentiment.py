"""Sentiment tasks and metrics: numbers from -3 (strongly negative) to 3 (strongly positive). N segments.

0 is neutral, and papers do not agree on which of two classes it belongs to. Two-class accuracies (Acc-2) of different
conventions cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recipe_common.tasks.task import CollectingMeter, Metric, Task, classification_metrics

LOWEST, HIGHEST = -3, 3
ZEROS = ("positive", "negative", "excluded")
"""Conventions for a sentiment of 0 in two classes."""
CLASSES = ("negative", "positive")
SEVEN = ("-3", "-2", "-1", "0", "1", "2", "3")
"""Names of the classes of `seven_labels`."""

_ACC2 = {
    "positive": Metric("acc2_zero_positive", "Acc-2, 0 positive"),
    "negative": Metric("acc2_zero_negative", "Acc-2, 0 negative"),
    "excluded": Metric("acc2_nonzero", "Acc-2, without 0"),
}
REGRESSION = (
    *_ACC2.values(),
    Metric("weighted_f1", "weighted F1"),
    Metric("macro_f1", "macro F1"),
    Metric("acc7", "Acc-7"),
    Metric("acc5", "Acc-5"),
    Metric("mae", "MAE", percent=False, higher_is_better=False),
    Metric("corr", "correlation", percent=False),
)
BINARY = (
    Metric("accuracy", "Acc-2"),
    Metric("macro_f1", "macro F1"),
    Metric("weighted_f1", "weighted F1"),
)
LACKS = {
    "accuracy": "a regression has errors instead",
    "categories": "sentiment is a number",
    "classes": "sentiment is a number",
}
"""Needs of methods that the regression of sentiment does not meet, and why."""


def sentiment_regression(
    zero: str = "positive", headline: str | None = None, loss: Callable[[], nn.Module] = nn.L1Loss
) -> Task:
    """Return the task of predicting the sentiment itself: predictions and targets (B, 1), float32.

    All metrics of ``REGRESSION`` are computed, see `regression_metrics`; only the headline and the F1 depend on the
    arguments.

    Args:
        zero: One of ``ZEROS``: the convention of the F1, and of the headline if it is not named.
        headline: Key of the metric that selects the best epoch; default: the Acc-2 of that convention.
        loss: Returns the training criterion.

    Raises:
        ValueError: If an argument is none of the possible values.
    """
    _check("zero", zero, ZEROS)
    headline = headline or _ACC2[zero].key
    _check("headline", headline, tuple(metric.key for metric in REGRESSION))
    metrics = tuple(sorted(REGRESSION, key=lambda metric: metric.key != headline))
    chance = 1 / 2 if headline.startswith("acc2") else None
    return Task(
        metrics,
        loss,
        lambda: CollectingMeter(lambda prediction, target: regression_metrics(prediction, target, zero)),
        score="regression",
        chance=chance,
        lacks=LACKS,
    )


def sentiment_binary(zero: str = "positive", loss: Callable[[], nn.Module] = nn.CrossEntropyLoss) -> Task:
    """Return the task of classification into negative and positive sentiment: logits (B, 2), class indices (B,).

    Targets come from `binary_labels`: two classes are trained and evaluated in one convention, since a neutral segment
    has no class of its own. Metrics: Acc-2, F1 averaged over both classes, and weighted by them.

    Args:
        zero: One of ``ZEROS``: the convention of the targets, for titles.
        loss: Returns the training criterion.

    Raises:
        ValueError: If `zero` is none of the possible values.
    """
    _check("zero", zero, ZEROS)
    accuracy = Metric("accuracy", _ACC2[zero].title)
    return Task((accuracy, *BINARY[1:]), loss, lambda: CollectingMeter(binary_metrics), chance=1 / 2)


def binary_labels(sentiment: Tensor, zero: str) -> tuple[Tensor, Tensor]:
    """Turn sentiments (N,) into class indices of ``CLASSES``.

    Args:
        sentiment: Sentiment of each segment.
        zero: One of ``ZEROS``.

    Returns:
        Class indices (M,), int64, and the rows (M,) that they belong to; M < N only if zeros are excluded.
    """
    _check("zero", zero, ZEROS)
    kept = sentiment != 0 if zero == "excluded" else torch.ones_like(sentiment, dtype=torch.bool)
    positive = sentiment >= 0 if zero == "positive" else sentiment > 0
    return positive[kept].long(), kept.nonzero().flatten()


def seven_labels(sentiment: Tensor) -> Tensor:
    """Turn sentiments (N,) into class indices 0 to 6, int64, as the code of Li et al. (ICCV 2023) for CMU-MOSEI.

    Class 3 is 0 alone; classes 4, 5 and 6 are (0, 1], (1, 2] and beyond, and 2, 1 and 0 their mirror images. Acc-7 of a
    regression rounds to the nearest integer instead: these are two measures.
    """
    return (sentiment.sign() * sentiment.abs().ceil()).clamp(LOWEST, HIGHEST).long() - LOWEST


def binary_metrics(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Return the metrics of ``BINARY`` for logits (N, 2) and class indices (N,)."""
    found = classification_metrics(logits, target)
    return {metric.key: found[metric.key] for metric in BINARY}


def regression_metrics(prediction: Tensor, target: Tensor, zero: str = "positive") -> dict[str, float]:
    """Return the metrics of ``REGRESSION`` for predictions and sentiments of N elements each.

    The definitions are those of MulT (Tsai et al., ACL 2019), as in MultiBench and Guo et al. (NeurIPS 2024):

    - ``acc2_...``: agreement in being positive. A 0, predicted or true, counts as positive or as negative, or
      segments whose true sentiment is 0 are left out (a predicted 0 is then negative).
    - ``weighted_f1``, ``macro_f1``: F1 of these two classes in the convention ``zero``.
    - ``acc7``, ``acc5``: agreement after clamping to [-3, 3] or [-2, 2] and rounding; halves go to the even neighbour.
    - ``mae``: mean absolute error. ``corr``: Pearson correlation, 0 where predictions or targets are all the same.
    """
    prediction, target = prediction.detach().double().flatten(), target.detach().double().flatten()
    classes = {name: _classes(prediction, target, name) for name in ZEROS}
    found = {
        _ACC2[name].key: _share(of_prediction == of_target) for name, (of_prediction, of_target) in classes.items()
    }
    return {
        **found,
        **f1_of_classes(*classes[zero]),
        "acc7": _share(_rounded(prediction, HIGHEST) == _rounded(target, HIGHEST)),
        "acc5": _share(_rounded(prediction, 2) == _rounded(target, 2)),
        "mae": (prediction - target).abs().mean().item(),
        "corr": correlation(prediction, target),
    }


def _classes(prediction: Tensor, target: Tensor, zero: str) -> tuple[Tensor, Tensor]:
    if zero == "positive":
        return prediction >= 0, target >= 0
    kept = target != 0 if zero == "excluded" else torch.ones_like(target, dtype=torch.bool)
    return prediction[kept] > 0, target[kept] > 0


def _share(is_right: Tensor) -> float:
    return is_right.double().mean().item() if is_right.numel() else 0.0


def f1_of_classes(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Return ``weighted_f1`` and ``macro_f1`` of predicted and true classes (N,); 0 without segments."""
    from sklearn.metrics import f1_score

    if not target.numel():
        return {"weighted_f1": 0.0, "macro_f1": 0.0}
    truth, predicted = target.cpu().numpy(), prediction.cpu().numpy()
    return {
        f"{average}_f1": float(f1_score(truth, predicted, average=average, zero_division=0))
        for average in ("weighted", "macro")
    }


def _rounded(sentiment: Tensor, bound: int) -> Tensor:
    return sentiment.clamp(-bound, bound).round()


def correlation(prediction: Tensor, target: Tensor) -> float:
    """Return the Pearson correlation of N numbers each; 0 where one of them is constant."""
    centred, centred_target = prediction - prediction.mean(), target - target.mean()
    scale = (centred.square().sum() * centred_target.square().sum()).sqrt()
    return ((centred * centred_target).sum() / scale).item() if scale > 0 else 0.0


def _check(name: str, value: str, possible: tuple[str, ...]) -> None:
    if value not in possible:
        raise ValueError(f"`{name}` should be one of {', '.join(possible)}. Found `{name} = {value!r}`.")
