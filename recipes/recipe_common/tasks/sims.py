"""Sentiment of CH-SIMS: numbers from -1 (negative) to 1 (positive), and the metrics of its authors. N segments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recipe_common.tasks.sentiment import LACKS, correlation, f1_of_classes
from recipe_common.tasks.task import CollectingMeter, Metric, Task

EDGES = {"acc2": (0.0,), "acc3": (-0.1, 0.1), "acc5": (-0.7, -0.1, 0.1, 0.7)}
"""Largest sentiment of each class but the last."""
METRICS = (
    Metric("acc2", "Acc-2"),
    Metric("acc3", "Acc-3"),
    Metric("acc5", "Acc-5"),
    Metric("weighted_f1", "weighted F1"),
    Metric("mae", "MAE", percent=False, higher_is_better=False),
    Metric("corr", "correlation", percent=False),
)


def sims_regression(headline: str = "mae", loss: Callable[[], nn.Module] = nn.L1Loss) -> Task:
    """Return the task of predicting the sentiment: predictions and targets (B, 1), float32.

    All metrics of ``METRICS`` are computed, see `sims_metrics`.

    Args:
        headline: Key of the metric that selects the best epoch.
        loss: Returns the training criterion.

    Raises:
        ValueError: If `headline` is none of the metrics.
    """
    keys = tuple(metric.key for metric in METRICS)
    if headline not in keys:
        raise ValueError(f"`headline` should be one of {', '.join(keys)}. Found `headline = {headline!r}`.")
    metrics = tuple(sorted(METRICS, key=lambda metric: metric.key != headline))
    chance = 1 / int(headline[-1]) if headline.startswith("acc") else None
    return Task(metrics, loss, lambda: CollectingMeter(sims_metrics), score="regression", chance=chance, lacks=LACKS)


def sims_metrics(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Return the metrics of ``METRICS`` for predictions and sentiments of N elements each, clamped to [-1, 1].

    The definitions are those of MMSA, the code of the authors of CH-SIMS (Yu et al., ACL 2020):

    - ``acc2``: agreement in being positive; a 0, predicted or true, is not.
    - ``acc3``, ``acc5``: agreement in the classes up to -0.1, up to 0.1 and above; up to -0.7, -0.1, 0.1, 0.7 and
      above.
    - ``weighted_f1``: F1 of the two classes, weighted by their true shares.
    - ``mae``: mean absolute error. ``corr``: Pearson correlation, 0 where predictions or targets are all the same.
    """
    prediction, target = (values.detach().float().flatten().clamp(-1, 1) for values in (prediction, target))
    classes = {name: (_classes(prediction, edges), _classes(target, edges)) for name, edges in EDGES.items()}
    return {
        **{name: (one == other).double().mean().item() for name, (one, other) in classes.items()},
        "weighted_f1": f1_of_classes(*classes["acc2"])["weighted_f1"],
        "mae": (prediction.double() - target.double()).abs().mean().item(),
        "corr": correlation(prediction.double(), target.double()),
    }


def _classes(sentiment: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Return the index of the class of each sentiment; an edge belongs to the class below it."""
    return torch.bucketize(sentiment, torch.tensor(edges, device=sentiment.device))
