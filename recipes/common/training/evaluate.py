"""How well a model does, with all modalities and with each one alone. N samples, C classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import attrs
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from common.training.loaders import Loader
from common.training.precision import Precision

FUSED = "fused"


@attrs.frozen
class Scores:
    """Result of an evaluation; all but the loss in [0, 1].

    Attributes:
        loss: Mean cross-entropy of the fused logits.
        accuracy: Top-1 accuracy.
        macro_f1: F1, averaged over classes.
        mean_ap: Average precision, averaged over classes (mAP).
        alone: For each modality, the accuracy when the features of all others are zero where they enter the fusion.
    """

    loss: float
    accuracy: float
    macro_f1: float
    mean_ap: float
    alone: dict[str, float]

    def as_row(self, split: str) -> dict[str, float]:
        """Return the scores under column names that begin with the name of the split."""
        row = {
            f"{split}_loss": self.loss,
            f"{split}_accuracy": self.accuracy,
            f"{split}_macro_f1": self.macro_f1,
            f"{split}_map": self.mean_ap,
        }
        return row | {f"{split}_accuracy_{modality}": value for modality, value in self.alone.items()}


@attrs.frozen
class Evaluator:
    """Evaluates a model; each encoder runs once per sample.

    Attributes:
        model: The bare model (neither compiled nor wrapped).
        fusion: Its submodule that turns one feature per modality into logits.
        modalities: Names in the order in which features enter ``fusion``.
        precision: Where and in which format to run.
    """

    model: nn.Module
    fusion: nn.Module
    modalities: tuple[str, ...]
    precision: Precision

    @torch.no_grad()
    def __call__(
        self, loader: Loader, limit: int | None = None, after_batch: Callable[[], None] = lambda: None
    ) -> Scores:
        """Return the scores on ``loader``, or on its first ``limit`` batches. Leaves the model in evaluation mode."""
        self.model.eval()
        logits: dict[str, list[Tensor]] = {name: [] for name in (FUSED, *self.modalities)}
        targets = []
        for *inputs, target in islice(loader, limit):
            for name, values in self._logits([x.to(self.precision.device, non_blocking=True) for x in inputs]).items():
                logits[name].append(values.float())
            targets.append(target)
            after_batch()
        joined = {name: torch.cat(parts) for name, parts in logits.items()}
        return score(joined, torch.cat(targets).to(self.precision.device))

    def _logits(self, inputs: list[Tensor]) -> dict[str, Tensor]:
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


def score(logits: Mapping[str, Tensor], target: Tensor) -> Scores:
    """Compare logits with the truth.

    Args:
        logits: Fused logits under ``FUSED`` and those of each modality alone under its name, each (N, C).
        target: Class indices (N,).
    """
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_average_precision,
        multiclass_f1_score,
    )

    fused = logits[FUSED]
    num_classes = fused.shape[1]
    with warnings.catch_warnings():
        # A small set may lack a class; average precision then leaves this class out and warns every time.
        warnings.filterwarnings("ignore", message=".*(No positive samples|Average precision score)")
        mean_ap = multiclass_average_precision(fused.softmax(dim=1), target, num_classes)
    accuracy = {
        name: multiclass_accuracy(values, target, num_classes, average="micro").item()
        for name, values in logits.items()
    }
    return Scores(
        loss=cross_entropy(fused, target).item(),
        accuracy=accuracy.pop(FUSED),
        macro_f1=multiclass_f1_score(fused, target, num_classes, average="macro").item(),
        mean_ap=mean_ap.item(),
        alone=accuracy,
    )
