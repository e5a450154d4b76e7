"""Weights that CGGM compares, that of the head and of the last layer of each probe; the metrics of the probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modbalance import Batch, ConfigError, Run
from modbalance.results import accuracies, accuracy
from modbalance.scores import require_classes, row_mask

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
METRICS = ("accuracy", "sign")
FIX = "for regression pass `metric='sign'`, for other tasks a callable (logits, target) -> (sum, count)"
Sizes = dict[str, int]
Metric = Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]
Sums = tuple[Tensor, Tensor]


def is_head(value: Any) -> str | None:
    """Check for a path or a module."""
    return None if value is None or isinstance(value, str | nn.Module) else "None, a path or a module"


def is_metric(value: Any) -> str | None:
    """Check for the name of a metric, or a callable."""
    named = ", ".join(map(repr, METRICS))
    expected = f"one of {named}, or a callable (logits, target) -> (sum, count), such as for a Dice coefficient"
    return None if callable(value) or value in METRICS else expected


def weight_of(layer: nn.Module) -> nn.Parameter:
    """Return the weight of a linear or convolutional layer."""
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight


def matrix(layer: nn.Module) -> Tensor:
    """Return the weight of a layer as a matrix, (C, K), a view."""
    return weight_of(layer).flatten(1)


def last_layer(module: nn.Module, what: str) -> nn.Module:
    """Return the last linear or convolutional layer of a module, in order of registration."""
    layers = [each for each in module.modules() if isinstance(each, LAYERS)]
    if not layers:
        raise ConfigError(
            f"{what} should hold an nn.Linear or a convolution. Found none in {type(module).__name__}: name or pass a "
            "module that does."
        )
    return layers[-1]


class Head:
    """The layer of the model whose weight is compared with that of the last layer of each probe.

    Attributes:
        layer: The layer.
        columns: Columns of its weight by modality, or nothing where probes are compared with all of it.

    Args:
        run: The run.
        head: Value of `head`; ``None``: the last layer of the fusion.
    """

    def __init__(self, run: Run, head: str | nn.Module | None) -> None:
        if head is None and not run.fusion_modules:
            raise ConfigError(
                "Method `cggm` compares its probes with the weight of the head, the last layer of `fusion=`. Found no "
                "module there: pass the layer as `head=` (a path or a module), or `lam=0` for no comparison."
            )
        if head is None:
            self.layer = last_layer(nn.ModuleList(run.fusion_modules), "The fusion")
        else:
            self.layer = last_layer(run.module(head, "Option `head`"), "Option `head`")
        self.columns: Sizes = {}
        self._is_alone = run.sole_fusion_layer is self.layer or (
            not run.fusion_modules and isinstance(self.layer, nn.Linear)
        )

    @property
    def weight(self) -> nn.Parameter:
        """The weight of the layer, W, (C, ...)."""
        return weight_of(self.layer)

    def widths(self, sizes: Sizes) -> Sizes:
        """Return the columns that weights of probes should have, by modality, for features of these sizes."""
        if self._reads_concatenation(sizes):
            return sizes
        return dict.fromkeys(sizes, matrix(self.layer).shape[1])

    def compare(self, lasts: Mapping[str, nn.Module], sizes: Sizes) -> None:
        """Find the part of the weight that each probe is compared with.

        Args:
            lasts: Last layer of the probe of each modality.
            sizes: Size of each modality's feature; empty where it is not known yet.

        Raises:
            ConfigError: The shapes differ.
        """
        shapes = {name: matrix(layer).shape for name, layer in lasts.items()}
        ours = matrix(self.layer).shape
        columns = sizes or {name: shape[1] for name, shape in shapes.items()}
        if all(shape == ours for shape in shapes.values()):
            self.columns = {}
        elif self._reads_concatenation(columns) and shapes == {name: (ours[0], columns[name]) for name in shapes}:
            self.columns = columns
        else:
            raise ConfigError(
                f"The last layer of each probe should have a weight of the head's shape, {tuple(ours)}, or of its "
                "modality's slice of a head that is linear over the concatenated features. Found "
                f"{ {name: tuple(shape) for name, shape in shapes.items()} }: pass probes of that shape "
                "(`probes='mlp'` makes them, or pass modules or a factory), another layer as `head=`, or `lam=0` for "
                "no comparison."
            )

    def parts(self, w: Tensor, count: int) -> Sequence[Tensor]:
        """Return the part of ``w``, (C, K), for each of ``count`` probes: all of it, or the columns of its modality."""
        return torch.split(w, list(self.columns.values()), 1) if self.columns else [w] * count

    def gradient(self, batch: Batch) -> Tensor:
        """Return the gradient of the task loss by the weight, (C, K), itself differentiable."""
        assert batch.task_loss is not None
        if not len(batch.logits):
            return torch.zeros_like(self.weight.flatten(1))
        loss = batch.task_loss(batch.logits)
        (gradient,) = torch.autograd.grad(loss, self.weight, create_graph=True, allow_unused=True)
        if gradient is None:
            raise ConfigError(
                "Option `head` should name a layer that the loss depends on. Found one that it does not: leave it out, "
                "or name the last layer of the fusion."
            )
        return gradient.flatten(1)

    def _reads_concatenation(self, sizes: Sizes) -> bool:
        """Whether the layer is linear over concatenated features of these sizes."""
        return self._is_alone and matrix(self.layer).shape[1] == sum(sizes.values())


def check_metric(metric: str | Metric, loss_fn: object) -> None:
    """Raise a ConfigError for the accuracy of classes beside a loss of labels or numbers."""
    if metric == "accuracy":
        require_classes(loss_fn, "The `metric='accuracy'` of CGGM", "pass `metric='sign'`, or a callable")


def measure_each(
    metric: str | Metric, logits: Mapping[str, Tensor], target: Tensor, present: Mapping[str, Tensor], ignore_index: int
) -> Sums:
    """Return `measure` of the outputs of all probes, (M,) each, at once where that is possible."""
    if metric == "accuracy" and not present:
        return accuracies([*logits.values()], target, fix=FIX, ignore_index=ignore_index)
    pairs = [measure(metric, o_i, target, present.get(name), ignore_index) for name, o_i in logits.items()]
    total, count = (torch.stack(values) for values in zip(*pairs, strict=True))
    return total, count


def measure(
    metric: str | Metric, logits: Tensor, target: Tensor, present: Tensor | None = None, ignore_index: int = -100
) -> Sums:
    """Return (sum, count) of a metric over one batch, 0-dim double precision, without a host read.

    Args:
        metric: ``"accuracy"``, ``"sign"``, or a callable ``(logits, target) -> (sum, count)``.
        logits: Outputs of a probe, (B, C, ...).
        target: Target of the criterion.
        present: Boolean (B,): samples that count; ``None``: all.
        ignore_index: Class index of elements that do not count.
    """
    if metric == "accuracy":
        return accuracy(logits, target, fix=FIX, ignore_index=ignore_index, present=present)
    if isinstance(metric, str):
        return _sign(logits, target, present)
    if present is not None:
        raise ConfigError(
            f"With `present=`, `metric` should be one of {', '.join(map(repr, METRICS))}. Found a callable, which "
            "cannot leave out the samples that lack a modality."
        )
    total, count = (_double(value, logits) for value in metric(logits, target))
    return total, count


def _sign(logits: Tensor, target: Tensor, present: Tensor | None) -> Sums:
    """Count the elements for which (prediction > 0) == (target > 0); both of one shape."""
    if logits.shape != target.shape:
        raise ConfigError(
            f"Target should have the shape of the predictions, {tuple(logits.shape)}, for `metric='sign'`. "
            f"Found {tuple(target.shape)}: reshape it, or pass a callable (logits, target) -> (sum, count)."
        )
    counted = torch.ones_like(logits, dtype=torch.bool)
    if present is not None:
        counted = counted & row_mask(present, counted)
    hits = ((logits > 0) == (target > 0)) & counted
    return hits.sum(dtype=torch.float64), counted.sum(dtype=torch.float64)


def _double(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(like.device, torch.float64)
    return like.new_full((), value, dtype=torch.float64)
