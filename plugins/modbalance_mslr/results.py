"""How well each modality did in an epoch: as the user says, or measured on the validation loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from modbalance import Batch, ConfigError, EpochData, Method, ObservationError, Run
from modbalance.scores import require_classes

Measure = Callable[[Batch, Tensor], tuple[Tensor, Tensor]]


def of_epoch(method: Method, run: Run, data: EpochData, quantity: str, measure: Measure) -> dict[str, float]:
    """Return a number by modality, the mean over ranks of what `opt.end_epoch()` was given, or else measured.

    Args:
        method: Who asks.
        run: The run.
        data: What `opt.end_epoch()` was given.
        quantity: ``"loss"`` or ``"accuracy"``.
        measure: Returns the sum over a batch and the number of summands, from a batch and unimodal logits.

    Raises:
        ObservationError: There are neither numbers nor a loader with a model.
    """
    given = (data.metrics or {}).get(quantity)
    if given is not None:
        numbers = torch.tensor(_checked(given, run, quantity), dtype=torch.float64, device=run.device)
        values = run.mean(numbers)
    elif data.val is not None and run.model is not None:
        sums, counts = run.sum(_measured(run, data, measure)).unbind()
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


def accuracy(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return how often the largest of the logits (B, C, ...) is that of the target, and of how many elements."""
    fix = "pass numbers, larger for better, `opt.end_epoch(metrics={{'accuracy': {{...}}}})`"
    require_classes(batch.run.loss_fn, "The accuracy of each modality", fix)
    has_probabilities = batch.target.is_floating_point() and logits.shape[1] > 1
    target = batch.target.argmax(1) if has_probabilities else batch.target
    predicted = logits.argmax(1)
    if predicted.shape != target.shape or target.is_floating_point():
        raise ConfigError(
            f"Accuracy should be that of classes: target {tuple(predicted.shape)} for logits {tuple(logits.shape)}. "
            f"Found target {tuple(target.shape)} of {target.dtype}: for other tasks pass numbers, larger for better, "
            "`opt.end_epoch(metrics={'accuracy': {...}})`."
        )
    counts = target != getattr(batch.run.loss_fn, "ignore_index", -100)
    return ((predicted == target) & counts).sum(), counts.sum()


def loss(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the user's loss of the logits times the batch size, and the batch size."""
    if batch.task_loss is None:
        raise ConfigError(
            "Losses are measured by the loss function of the training. Found none: build `opt.criterion(loss_fn)` "
            "first, or pass numbers, `opt.end_epoch(metrics={'loss': {...}})`."
        )
    size = torch.full((), len(logits), device=logits.device)
    return batch.task_loss(logits) * size, size


def scalar(run: Run, value: float) -> Tensor:
    """Return a 0-dim tensor for the gradients, in at least single precision; made on the device, without a copy."""
    parameter = next(p for name in run.modalities for _, p in run.encoder_parameters(name))
    return torch.full((), value, dtype=torch.promote_types(parameter.dtype, torch.float32), device=parameter.device)


def _checked(given: Mapping[str, float], run: Run, quantity: str) -> list[float]:
    if set(given) != set(run.modalities):
        raise ObservationError(
            f"`metrics[{quantity!r}]` should hold a number for each of {list(run.modalities)}. Found {sorted(given)}."
        )
    return [float(given[name]) for name in run.modalities]


@torch.no_grad()
def _measured(run: Run, data: EpochData, measure: Measure) -> Tensor:
    total = torch.zeros(2, len(run.modalities), dtype=torch.float64, device=run.device)
    for batch in run.evaluate(data.val or (), data.forward):
        measured = [measure(batch, batch.unimodal_logits[name]) for name in run.modalities]
        total += torch.stack(
            [torch.stack([s.double() for s, _ in measured]), torch.stack([n.double() for _, n in measured])]
        )
    return total
