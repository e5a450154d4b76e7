"""State of one training that all methods of an optimizer share; methods reach it through `modbalance.context.Run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor
from torch.optim import Optimizer

from modbalance._clip import Clip
from modbalance._model.ownership import Ownership
from modbalance._model.rerun import Rerun
from modbalance._model.structure import Structure
from modbalance._model.unimodal import Unimodal
from modbalance._model.watch import Watch
from modbalance._ranks import Ranks
from modbalance._reporting import Telemetry
from modbalance._update import Update
from modbalance.scores import Score


@attrs.define(eq=False)
class Training:
    """One training with one optimizer.

    Attributes:
        structure: The model as encoders and fusion.
        watch: The hooks on the model.
        rerun: Runs parts of the model again.
        unimodal: Computes unimodal logits.
        ranks: The ranks that train the model together.
        telemetry: Logged values and counters.
        optimizer: The inner optimizer.
        update: Scales updates of the inner optimizer, with `apply="update"`; ``None``: gradients are scaled.
        dry_run: Whether everything is computed and logged but nothing may change.
        clip: The clip of a step.
        epoch: Current epoch, 0-based.
        steps: Optimizer steps taken so far in which a method acted.
        loss_fn: The loss of the latest `opt.criterion`, ``scorer`` its score.
        should_stop: Whether a method would end the training.
        forward: From model and batch to logits and target, as `opt.begin` was given it.
        unimodal_source: Gives unimodal logits in the place of ``unimodal``, where a method has a head of its own.
        ownership: Parameters of the inner optimizer by modality.
    """

    structure: Structure
    watch: Watch
    rerun: Rerun
    unimodal: Unimodal
    ranks: Ranks
    telemetry: Telemetry
    optimizer: Optimizer
    dry_run: bool = False
    clip: Clip = attrs.field(factory=lambda: Clip(None, None))
    update: Update | None = None
    epoch: int = 0
    steps: int = 0
    loss_fn: Callable[..., Tensor] | None = None
    scorer: Score | None = None
    should_stop: bool = False
    forward: Callable[..., Any] | None = None
    unimodal_source: Callable[..., Mapping[str, Tensor]] | None = None
    ownership: Ownership = attrs.field(init=False)

    @ownership.default
    def _ownership(self) -> Ownership:
        return Ownership(self.structure, self.optimizer)
