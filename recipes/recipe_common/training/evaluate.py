"""Evaluation of a model with all modalities, and with each modality alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from recipe_common.report.own_labels import own_name
from recipe_common.tasks.task import Task
from recipe_common.training.loaders import Loader, to_device
from recipe_common.training.precision import Precision

FUSED = "fused"


def as_returned(logits: Tensor) -> Tensor:
    """Return the logits of the model, which most methods predict from."""
    return logits


@attrs.frozen
class Scores:
    """Result of an evaluation.

    Attributes:
        loss: Mean loss of the fused logits.
        metrics: Metrics of the fused logits by key.
        headline: Key of the metric that selects the best epoch.
        alone: For each modality, all metrics when the features of all others are zero where they enter the fusion.
        own: For each modality that has labels of its own, all metrics of the same predictions against these.
    """

    loss: float
    metrics: dict[str, float]
    headline: str
    alone: dict[str, dict[str, float]]
    own: dict[str, dict[str, float]] = attrs.field(factory=dict)

    def as_row(self, split: str) -> dict[str, float]:
        """Return the scores under column names that begin with the name of the split."""
        row = {f"{split}_loss": self.loss}
        row |= {f"{split}_{key}": value for key, value in self.metrics.items()}
        for modality, metrics in self.alone.items():
            shown = metrics if modality in self.own else {self.headline: metrics[self.headline]}
            row |= {f"{split}_{key}_{modality}": value for key, value in shown.items()}
        for modality, metrics in self.own.items():
            row |= {f"{split}_{key}_{own_name(modality)}": value for key, value in metrics.items()}
        return row


@attrs.frozen
class Evaluator:
    """Evaluates a model; each encoder runs once per sample.

    The fused logits are those that the method predicts from; each modality alone is the model's own.

    Attributes:
        model: The bare model (neither compiled nor wrapped).
        fusion: Its submodule that turns one feature per modality into logits.
        modalities: Names in the order in which features enter ``fusion``.
        task: Loss and metrics.
        precision: Device and number format.
        predicted: From what the model has just returned to the logits that predictions are made from.
    """

    model: nn.Module
    fusion: nn.Module
    modalities: tuple[str, ...]
    task: Task
    precision: Precision
    predicted: Callable[[Tensor], Tensor] = as_returned

    @torch.no_grad()
    def __call__(
        self, loader: Loader, limit: int | None = None, after_batch: Callable[[], None] = lambda: None
    ) -> Scores:
        """Return the scores on ``loader``, or on its first ``limit`` batches. Leaves the model in evaluation mode."""
        self.model.eval()
        loss_fn = self.task.loss().to(self.precision.device)
        own: Mapping[str, Tensor] = getattr(loader.dataset, "own_targets", {})
        meters = {name: self.task.meter() for name in (FUSED, *self.modalities, *map(own_name, own))}
        total_loss = torch.zeros((), dtype=torch.float64, device=self.precision.device)
        samples = 0
        for batch in islice(loader, limit):
            *inputs, target = to_device(batch, self.precision.device)
            logits = {name: values.float() for name, values in self._logits(inputs).items()}
            total_loss += loss_fn(logits[FUSED], target) * len(target)
            for name, values in logits.items():
                meters[name].update(values, target)
            for name, targets in own.items():
                # Batches come in the order of the dataset.
                of_batch = targets[samples : samples + len(target)].to(self.precision.device)
                meters[own_name(name)].update(logits[name], of_batch)
            samples += len(target)
            after_batch()
        computed = {name: meter.compute() for name, meter in meters.items()}
        return Scores(
            total_loss.item() / samples,
            computed[FUSED],
            self.task.headline.key,
            {name: computed[name] for name in self.modalities},
            {name: computed[own_name(name)] for name in own},
        )

    def _logits(self, inputs: list[Any]) -> dict[str, Tensor]:
        with self.precision.autocast(), _inputs_of(self.fusion) as captured:
            logits = {FUSED: self.predicted(self.model(*inputs))}
            features = captured[0]
            for kept, name in enumerate(self.modalities):
                alone = [x if i == kept else torch.zeros_like(x) for i, x in enumerate(features)]
                logits[name] = self.fusion(*alone)
        return logits


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[tuple[Tensor, ...]]]:
    captured: list[tuple[Tensor, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: captured.append(inputs))
    try:
        yield captured
    finally:
        handle.remove()
