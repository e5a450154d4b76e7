"""Diagnosis of a trained or half-trained model: which modality it uses, which one it starves.

`diagnose` needs no method and changes nothing. Definitions, equations and sources: docs/diagnose.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from modbalance._model.forward import Place
from modbalance._model.structure import Fusion, Parts
from modbalance._model.unimodal import UnimodalSpec
from modbalance._training import Training
from modbalance.context import Forwarder, default_forward
from modbalance.diagnosis._advice import Suggestion as Suggestion
from modbalance.diagnosis._diagnose import Settings, run
from modbalance.diagnosis._report import Diagnosis as Diagnosis
from modbalance.diagnosis._report import ModalityFindings as ModalityFindings
from modbalance.diagnosis._subject import quiet, subject_in_training, subject_of
from modbalance.diagnosis._task import is_of_classes, task_of
from modbalance.diagnosis._verdict import Verdict as Verdict
from modbalance.errors import ConfigError
from modbalance.scores import Score

__all__ = ["Diagnosis", "ModalityFindings", "Suggestion", "Verdict", "diagnose"]


def diagnose(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    modalities: Mapping[str, Parts],
    fusion: Fusion | None = None,
    feature_sizes: Mapping[str, int] | Sequence[int] | None = None,
    inputs: Mapping[str, Place | Sequence[Place]] | None = None,
    mask_value: float | Mapping[str, float] = 0.0,
    unimodal: UnimodalSpec = "auto",
    score: Score | str | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    forward: Forwarder | None = None,
    ceilings: Mapping[str, float] | None = None,
    max_batches: int | None = None,
    gradient_batches: int = 8,
    permutations: int = 64,
    probe: bool = True,
    seed: int = 0,
    epoch: float | None = None,
    history: Sequence[Diagnosis] = (),
    progress: bool | None = None,
) -> Diagnosis:
    """Return how much each modality contributes to a model, how well it is learned, and whether one is starved.

    The model runs in eval mode. Its weights, gradients, buffers, training flags and hooks, and the random states of the
    process stay as they were. The loader is read in full, and its first batches once more for gradients.

    Args:
        model: The model; this and the arguments up to ``unimodal`` are those of `BalancedOptimizer`.
        loader: Batches of held-out samples; of training samples, contributions are those to the fit.
        modalities: Encoder of each modality, two or more, in fusion order.
        fusion: Where unimodal features become logits; without it, modalities are removed at the input alone.
        feature_sizes: Sizes of the parts where the fusion receives one concatenated tensor.
        inputs: Which arguments of the model's forward belong to a modality.
        mask_value: Fill value of a removed input.
        unimodal: How unimodal logits are obtained.
        score: ``None``: the accuracy of classes; else the mean of a score, as in `opt.criterion(score=)`.
        loss_fn: Loss whose gradients are taken, ``(logits, target) -> 0-dim tensor``; ``None``: cross entropy for
            classes, the usual one for a named score, no gradients for a callable.
        forward: ``(model, batch) -> (logits, target)``; default ``model(*batch[:-1]), batch[-1]``, moved to the device
            of the model.
        ceilings: Accuracy of an encoder trained by itself, in [0, 1], by modality, as far as known.
        max_batches: Number of batches that are read, >= 1; ``None``: all.
        gradient_batches: Number of batches for gradients, >= 0; 0: none.
        permutations: Number of permutations beyond four modalities, >= 2.
        probe: Whether linear probes are fitted to the features, where the targets are one class per sample.
        seed: Seed of permutations and of the halves of the probe.
        epoch: Epoch of the training, for the report and the speed.
        history: Earlier diagnoses of the run, oldest first; they give the speed of learning.
        progress: Whether a progress bar is shown on stderr; ``None``: if that is a terminal.

    Raises:
        ConfigError: An argument, a batch, a label or logits do not fit; the message names the fix.
    """
    options: dict[str, Any] = {
        "ceilings": ceilings,
        "max_batches": max_batches,
        "gradient_batches": gradient_batches,
        "permutations": permutations,
        "probe": probe,
        "seed": seed,
        "epoch": epoch,
        "history": history,
        "progress": progress,
    }
    subject = subject_of(
        model,
        task_of(score, loss_fn),
        forward or _default_forward,
        modalities,
        fusion=fusion,
        feature_sizes=feature_sizes,
        inputs=inputs,
        mask_value=mask_value,
        unimodal=unimodal,
    )
    return run(subject, loader, Settings(**options))


def diagnose_training(
    training: Training,
    loader: Iterable[Any],
    *,
    score: Score | str | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    forward: Forwarder | None = None,
    **options: Any,
) -> Diagnosis:
    """Return the diagnosis of the model of a training; options are keywords of `diagnose`.

    The score and the loss are those of the latest `opt.criterion`, unless they are given.
    """
    if score is None and loss_fn is None:
        loss_fn = training.loss_fn
        score = None if training.scorer is None or is_of_classes(training.scorer) else training.scorer
    task = task_of(score, loss_fn)
    subject = subject_in_training(training, task, forward or _default_forward)
    with quiet(training):
        return run(subject, loader, Settings(**({"epoch": training.epoch} | options)))


def _default_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        raise ConfigError(
            f"A batch of the loader should be a tuple or list of inputs and, last, the target. Found "
            f"{type(batch).__name__}: pass `forward=lambda model, batch: (logits, target)`."
        )
    return default_forward(model, batch)
