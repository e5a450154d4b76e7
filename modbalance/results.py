"""Results of each modality after an epoch: given as numbers, or measured on the validation loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from modbalance.context import Batch, EpochData, Run
from modbalance.errors import ConfigError, ObservationError
from modbalance.method import Method
from modbalance.scores import require_classes, row_mask

__all__ = ["accuracies", "accuracy", "epoch_results", "scalar"]

Sums = tuple[Tensor, Tensor]
# With braces for `str.format`.
_NUMBERS = "pass numbers, larger for better, `opt.end_epoch(metrics={{'accuracy': {{...}}}})`"


def epoch_results(method: Method, run: Run, data: EpochData, quantity: Literal["accuracy", "loss"]) -> dict[str, float]:
    """Return the accuracy or the loss of each modality: the mean over ranks of the given numbers, or measured.

    Accuracies are in [0, 1], those of classes; losses are those of the training, means over samples. Both are measured
    on the logits of each modality alone. Results that are not finite are counted as ``nonfinite_<quantity>``.

    Args:
        method: The method that needs the results, for messages.
        run: The run.
        data: Arguments of `opt.end_epoch()`.
        quantity: ``"accuracy"`` or ``"loss"``.

    Raises:
        ObservationError: There are neither numbers nor a loader with a model.
        ConfigError: The quantity cannot be measured with the loss or the targets of this training.
    """
    given = (data.metrics or {}).get(quantity)
    if given is not None:
        numbers = torch.tensor(_checked(given, run, quantity), dtype=torch.float64, device=run.device)
        values = run.mean(numbers)
    elif data.val is not None and run.model is not None:
        sums, counts = run.sum(_measured(run, data, _MEASURES[quantity])).unbind()
        values = sums / counts
    else:
        example = f"{{{quantity!r}: {{{', '.join(f'{name!r}: ...' for name in run.modalities)}}}}}"
        model = "" if run.model is not None else ", which also needs `model=`"
        raise ObservationError(
            f"Method `{method.name}` needs the {quantity} of each modality after each epoch of its window. Found "
            f"neither numbers, `opt.end_epoch(metrics={example})`, nor a loader to measure it on, "
            f"`opt.end_epoch(val=loader)`{model}."
        )
    for name, value in zip(run.modalities, values, strict=True):
        run.count(f"nonfinite_{quantity}/{name}", ~value.isfinite())
    return dict(zip(run.modalities, values.tolist(), strict=True))


def accuracy(
    logits: Tensor, target: Tensor, *, fix: str, ignore_index: int = -100, present: Tensor | None = None
) -> Sums:
    """Return the number of elements whose largest logit is that of the target, and the number that count.

    Both are 0-dim, double precision; there is no host read.

    Args:
        logits: (B, C, ...).
        target: Class indices (B, ...), or class probabilities (B, C, ...), of which the largest counts.
        fix: For the message: what to do for other targets.
        ignore_index: Class index of elements that do not count.
        present: Boolean (B,): samples that count; ``None``: all.

    Raises:
        ConfigError: The target holds neither indices nor probabilities of classes.
    """
    hits, counted = _hits(logits, target, fix, ignore_index)
    if present is not None:
        counted = counted & row_mask(present, counted)
    return (hits & counted).sum(dtype=torch.float64), counted.sum(dtype=torch.float64)


def accuracies(logits: Sequence[Tensor], target: Tensor, *, fix: str, ignore_index: int = -100) -> Sums:
    """Return `accuracy` of M logits of one batch at once, (M,) each; all samples count.

    Raises:
        ConfigError: The target holds neither indices nor probabilities of classes.
    """
    # As one more dimension of elements.
    stacked = torch.stack([*logits], -1)
    hits, counted = _hits(stacked, target.unsqueeze(-1).expand(*target.shape, len(logits)), fix, ignore_index)
    both = [(each.flatten(0, -2) if each.dim() > 1 else each) for each in (hits & counted, counted)]
    total, count = (each.sum(0, dtype=torch.float64) for each in both)
    return total, count


def _hits(logits: Tensor, target: Tensor, fix: str, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return for each element whether the largest logit is that of the target, and whether it counts."""
    if target.is_floating_point() and target.shape == logits.shape and logits.dim() > 1 and logits.shape[1] > 1:
        target = target.argmax(1)
    if target.is_floating_point() or logits.dim() < 2 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ConfigError(
            f"Accuracy should be that of classes: target of class indices or class probabilities for logits of shape "
            f"{tuple(logits.shape)}. Found target of {target.dtype}, shape {tuple(target.shape)}: {fix}."
        )
    return logits.argmax(1) == target, target != ignore_index


def scalar(run: Run, value: float) -> Tensor:
    """Return a 0-dim tensor for the gradients, in at least single precision; made on the device, without a copy."""
    parameter = next(run.optimized_parameters())
    return torch.full((), value, dtype=torch.promote_types(parameter.dtype, torch.float32), device=parameter.device)


def _accuracy(batch: Batch, logits: Tensor) -> Sums:
    loss_fn = batch.run.loss_fn
    require_classes(loss_fn, "The accuracy of each modality", _NUMBERS)
    ignore_index = getattr(loss_fn, "ignore_index", -100)
    return accuracy(logits, batch.target, fix=f"for other tasks {_NUMBERS.format()}", ignore_index=ignore_index)


def _loss(batch: Batch, logits: Tensor) -> Sums:
    if batch.task_loss is None:
        raise ConfigError(
            "Losses are measured by the loss function of the training. Found none: build `opt.criterion(loss_fn)` "
            "first, or pass numbers, `opt.end_epoch(metrics={'loss': {...}})`."
        )
    size = torch.full((), len(logits), device=logits.device)
    return batch.task_loss(logits) * size, size


_MEASURES: dict[str, Callable[[Batch, Tensor], Sums]] = {"accuracy": _accuracy, "loss": _loss}


def _checked(given: Mapping[str, float], run: Run, quantity: str) -> list[float]:
    if set(given) != set(run.modalities):
        raise ObservationError(
            f"`metrics[{quantity!r}]` should hold a number for each of {list(run.modalities)}. Found {sorted(given)}."
        )
    return [float(given[name]) for name in run.modalities]


@torch.no_grad()
def _measured(run: Run, data: EpochData, measure: Callable[[Batch, Tensor], Sums]) -> Tensor:
    """Return the sums over the validation loader of this rank, and the numbers of summands; (2, M)."""
    total = torch.zeros(2, len(run.modalities), dtype=torch.float64, device=run.device)
    for batch in run.evaluate(data.val or (), data.forward):
        measured = [measure(batch, batch.unimodal_logits[name]) for name in run.modalities]
        total += torch.stack(
            [torch.stack([s.double() for s, _ in measured]), torch.stack([n.double() for _, n in measured])]
        )
    return total
