"""Hook specifications: every hook that a method may implement, in firing order.

All hooks are optional, and an implementation may take any subset of the arguments. Hooks of several methods run in
the order in which the methods were given, each seeing the result of the one before. No hook that fires within a step
may read a tensor on the host (`.item()`, `.cpu()`, `if tensor`): a branch on data is `torch.where`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from modbalance.context import Batch, EpochData, Run, Step
    from modbalance.method import Method

__all__ = ["HOOKS", "hookimpl"]

NAME = "modbalance"
hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)


@hookspec
def modbalance_methods() -> Sequence[type[Method]]:  # type: ignore[empty-body]
    """Return the method classes of a plugin module. Called at discovery, on the module itself."""


@hookspec
def modbalance_setup(run: Run) -> None:
    """Build probes, snapshots and the like. Called once, after the model is attached.

    Modules built here stay outside the user's model and must be equal on all ranks: draw from `run.generator`.
    """


@hookspec
def modbalance_begin(run: Run, data: EpochData) -> None:
    """Look at data before the first step, which `modbalance_setup` cannot. Called by `opt.begin()`.

    It does not fire in a training that goes on from a checkpoint, where the saved state counts.
    """


@hookspec
def modbalance_epoch_start(run: Run, epoch: int) -> None:
    """Prepare an epoch (0-based): draw an order, set a phase. Called before the first batch of it is observed.

    It fires before the forward of that batch where `Method.starts_before_forward` says so, or where a method replaces
    inputs or features; else after it, in the criterion.
    """


@hookspec
def modbalance_inputs(batch: Batch, inputs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Replace inputs of the model, by modality. Called before the model's forward; `None` keeps them."""


@hookspec
def modbalance_features(batch: Batch, features: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Replace features where they enter the fusion, by modality, each (B, ..., D_i). `None` keeps them."""


@hookspec
def modbalance_observe(batch: Batch) -> Mapping[str, Tensor]:  # type: ignore[empty-body]
    """Return named sums over this batch. Called in the criterion.

    The core adds them over micro-batches and over ranks (one all-reduce a step): `step.stats` in later hooks.
    """


@hookspec
def modbalance_takeover(batch: Batch) -> Tensor | None:
    """Return the loss of the batch, 0-dim, in the place of the task loss of the fused logits. One method at most.

    For a method that trains without a joint loss, or takes steps of its own in the criterion (`run.shadow`). Called in
    the criterion instead of `modbalance_logits` and the task loss; `None`: these follow. A further criterion call on
    the same forward is refused, since nothing could take that over.
    """


@hookspec
def modbalance_logits(batch: Batch) -> Tensor | None:
    """Replace the fused logits, same shape. Called in the criterion, before the task loss; one method at most.

    Fires in evaluation too where the method sets `acts_in_eval`: then the batch holds the forward's features, but no
    target and no loss.
    """


@hookspec
def modbalance_losses(batch: Batch) -> Mapping[str, Tensor]:  # type: ignore[empty-body]
    """Return named 0-dim terms that are added to the task loss. Called in the criterion, after the task loss."""


@hookspec
def modbalance_coefficients(step: Step) -> Mapping[str, Tensor]:  # type: ignore[empty-body]
    """Return a 0-dim coefficient by modality. Called in `modulate()`, gradients still unmodulated.

    The core multiplies the gradients of the encoder by it, where `Method.modulates` is true. A coefficient that is
    NaN or infinite acts as 1 and is counted in `metrics()`.
    """


@hookspec
def modbalance_gradients(step: Step) -> None:
    """Edit gradients in place: noise, closed-form terms, a conditional clip. Called after the coefficients."""


@hookspec
def modbalance_after_step(step: Step) -> None:
    """Commit state: averages, probe steps. Called after an inner step that really happened."""


@hookspec
def modbalance_epoch_end(run: Run, epoch: int, data: EpochData) -> None:
    """Look at data or metrics, edit weights. Called by `opt.end_epoch()`, before the epoch advances."""


HOOKS = tuple(name for name in list(globals()) if name.startswith(NAME + "_"))
"""Names of all hooks, in firing order."""
