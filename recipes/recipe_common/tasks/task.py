"""Training tasks: loss, metrics, and meters that gather predictions for them. N samples, C classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor, nn


@attrs.frozen
class Metric:
    """A measure of the quality of a model.

    Attributes:
        key: Name in files, such as ``"accuracy"``.
        title: Name in tables and pictures, such as ``"top-1"``.
        percent: Whether it is a share of 1, shown in percent.
        higher_is_better: Whether a higher value is better; otherwise a lower one is.
    """

    key: str
    title: str
    percent: bool = True
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """Format a value."""
        return f"{100 * value:.1f}%" if self.percent else f"{value:.3f}"


class Meter(Protocol):
    """Gathers the predictions of one evaluation."""

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add one batch of float32 logits; batches come in the order of the dataset."""

    def compute(self) -> dict[str, float]:
        """Return every metric by its key."""


class CollectingMeter:
    """Keeps all logits and targets, and computes the metrics from them at the end.

    Args:
        function: Returns metrics by key for logits (N, ...) and targets (N, ...).
    """

    def __init__(self, function: Callable[[Tensor, Tensor], dict[str, float]]) -> None:
        self._function = function
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add one batch."""
        self._logits.append(logits)
        self._targets.append(target)

    def compute(self) -> dict[str, float]:
        """Return every metric by its key."""
        return self._function(torch.cat(self._logits), torch.cat(self._targets))


@attrs.frozen
class Task:
    """Loss and metrics of a training.

    Attributes:
        metrics: All metrics. The first one is the headline: it selects the best epoch and is also reported for each
            modality alone.
        loss: Returns the training criterion, from logits and target to a scalar.
        meter: Returns a new meter for one evaluation.
        score: Score of a modality on a sample, for the methods: ``score=`` of ``BalancedOptimizer.criterion``.
        chance: Value of the headline for a random guess; None if unknown.
        lacks: Needs of methods that this task does not meet, and why.
    """

    metrics: tuple[Metric, ...]
    loss: Callable[[], nn.Module]
    meter: Callable[[], Meter]
    score: str | Callable[..., Any] | None = None
    chance: float | None = None
    lacks: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def headline(self) -> Metric:
        """The metric that selects the best epoch."""
        return self.metrics[0]

    def rank(self, row: Mapping[str, float], split: str) -> tuple[float, float]:
        """Return a pair of numbers that is larger for a better row: the headline, then the loss.

        Accuracies of few samples are often equal, and the loss orders such epochs.
        """
        value = row[f"{split}_{self.headline.key}"]
        value = value if self.headline.higher_is_better else -value
        return larger_if_number(value), larger_if_number(-row[f"{split}_loss"])


def larger_if_number(value: float) -> float:
    """Return a value to sort by: NaN is below all numbers."""
    return -math.inf if math.isnan(value) else value


ACCURACY = Metric("accuracy", "top-1")
CLASSIFICATION = (
    ACCURACY,
    Metric("macro_f1", "macro F1"),
    Metric("weighted_f1", "weighted F1"),
    Metric("map", "mAP"),
)


def classification(num_classes: int, loss: Callable[[], nn.Module] = nn.CrossEntropyLoss) -> Task:
    """Return the task of classification into C classes: logits (B, C), class indices (B,).

    Metrics: top-1 accuracy, F1 averaged over classes and weighted by them, average precision averaged over classes.
    """
    return Task(CLASSIFICATION, loss, lambda: CollectingMeter(classification_metrics), chance=1 / num_classes)


def classification_metrics(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Return the metrics of ``CLASSIFICATION`` for logits (N, C) and class indices (N,).

    F1 is averaged over the classes that are predicted or true somewhere, average precision over those that are true.
    """
    from sklearn.metrics import average_precision_score, f1_score

    # A model that has diverged has scores, too; its loss is not finite.
    probability = logits.double().softmax(dim=1).nan_to_num().cpu().numpy()
    predicted, truth = probability.argmax(axis=1), target.cpu().numpy()
    precisions = [average_precision_score(truth == index, probability[:, index]) for index in set(truth.tolist())]
    return {
        "accuracy": float((predicted == truth).mean()),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "weighted_f1": float(f1_score(truth, predicted, average="weighted", zero_division=0)),
        "map": sum(precisions) / len(precisions),
    }
