"""Evaluation of a model with all modalities, and with each modality alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from recipe_common.tasks.task import Task
from recipe_common.training.loaders import Loader, to_device
from recipe_common.training.precision import Precision

FUSED = "fused"


@attrs.frozen
class Scores:
    """Result of an evaluation.

    Attributes:
        loss: Mean loss of the fused logits.
        metrics: Metrics of the fused logits by key.
        headline: Key of the metric that selects the best epoch.
        alone: For each modality, that metric when the features of all others are zero where they enter the fusion.
    """

    loss: float
    metrics: dict[str, float]
    headline: str
    alone: dict[str, float]

    def as_row(self, split: str) -> dict[str, float]:
        """Return the scores under column names that begin with the name of the split."""
        row = {f"{split}_loss": self.loss}
        row |= {f"{split}_{key}": value for key, value in self.metrics.items()}
        return row | {f"{split}_{self.headline}_{modality}": value for modality, value in self.alone.items()}


@attrs.frozen
class Evaluator:
    """Evaluates a model; each encoder runs once per sample.

    Attributes:
        model: The bare model (neither compiled nor wrapped).
        fusion: Its submodule that turns one feature per modality into logits.
        modalities: Names in the order in which features enter ``fusion``.
        task: Loss and metrics.
        precision: Device and number format.
    """

    model: nn.Module
    fusion: nn.Module
    modalities: tuple[str, ...]
    task: Task
    precision: Precision

    @torch.no_grad()
    def __call__(
        self, loader: Loader, limit: int | None = None, after_batch: Callable[[], None] = lambda: None
    ) -> Scores:
        """Return the scores on ``loader``, or on its first ``limit`` batches. Leaves the model in evaluation mode."""
        self.model.eval()
        loss_fn = self.task.loss().to(self.precision.device)
        meters = {name: self.task.meter() for name in (FUSED, *self.modalities)}
        total_loss = torch.zeros((), dtype=torch.float64, device=self.precision.device)
        samples = 0
        for batch in islice(loader, limit):
            *inputs, target = to_device(batch, self.precision.device)
            logits = {name: values.float() for name, values in self._logits(inputs).items()}
            total_loss += loss_fn(logits[FUSED], target) * len(target)
            samples += len(target)
            for name, values in logits.items():
                meters[name].update(values, target)
            after_batch()
        headline = self.task.headline.key
        alone = {name: meters[name].compute()[headline] for name in self.modalities}
        return Scores(total_loss.item() / samples, meters[FUSED].compute(), headline, alone)

    def _logits(self, inputs: list[Any]) -> dict[str, Tensor]:
        with self.precision.autocast(), _inputs_of(self.fusion) as captured:
            logits = {FUSED: self.model(*inputs)}
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
