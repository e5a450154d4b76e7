"""MLA: every modality in turn is classified alone by one shared head, with an optimizer step of the head each.

Source: Zhang, Yoon, Bansal, Yao, "Multimodal Representation Learning by Alternating Unimodal Adaptation", CVPR 2024.
Symbols are those of docs/methods/mla.md, which also lists quirks of the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from modbalance import (
    Batch,
    ConfigError,
    Method,
    Run,
    Shadow,
    Step,
    ge,
    hookimpl,
    integer,
    kept,
    one_of,
    option,
    optional,
    state,
)
from modbalance.method import Preset
from modbalance_mla import projection, weights
from modbalance_mla.head import SharedHead, check_inputs, check_logits, check_width, find_head, last_linear
from modbalance_mla.samples import SubStep, inputs_of, mean_input, of_all_ranks

__all__ = ["MLA", "SharedHead"]

_SMALL = (
    "A denominator of the projection of method `mla` was near 0, where rounding decides the gradient of the head; P "
    "stays as it was where it would not be finite: pass `projection='rls'`, or `'off'`."
)


def numbers(value: Any) -> str | None:
    """Check for a mapping from modalities to numbers of at least 0."""
    is_valid = isinstance(value, Mapping) and all(isinstance(m, str) and ge(0)(w) is None for m, w in value.items())
    return None if is_valid else "a mapping from modalities to numbers >= 0"


def part(value: Any) -> str | None:
    """Check for a path or a module."""
    return None if isinstance(value, str | nn.Module) else "the path of a module, or the module"


@attrs.define(eq=False)
class PendingState:
    """State after the sub-steps so far of a batch, which becomes that of the method when the step happens."""

    P: Tensor | None
    calls: int
    small: Tensor | None = None


@attrs.define(eq=False, kw_only=True)
class MLA(Method):
    """Trains each encoder by its own loss through one shared head, which takes an optimizer step per modality.

    Touches the loss, the steps of the head, and the logits in evaluation. Needs a fusion by one head for all
    modalities. Costs head-sized operations; no further encoder pass, no host read.
    """

    name: ClassVar[str] = "mla"
    needs = frozenset({"model", "features", "loss_fn", "shared_head"})
    min_modalities = 2
    presets: ClassVar[tuple[Preset, ...]] = ("official",)
    excluded_hooks = frozenset({"modbalance_features", "modbalance_logits", "modbalance_losses"})
    acts_in_eval = True
    step_cost: ClassVar[float | None] = 1.01

    projection: str = option(
        "off",
        one_of("off", "elementwise", "rls"),
        "projection of the head's gradient: none, as the first release, or by recursive least squares",
    )
    steps_per_epoch: int | None = option(
        None, optional(integer(1)), "n, batches per epoch, by which alpha of the projection falls; None: alpha is .1"
    )
    idle: str = option(
        "skip",
        one_of("skip", "coast"),
        "updates of an encoder in later sub-steps: none, or by momentum and weight decay alone",
    )
    eval_weights: str = option(
        "fixed", one_of("fixed", "batch_entropy", "sample_entropy"), "weights of the modalities in evaluation"
    )
    weights: Mapping[str, float] | None = option(
        None, optional(numbers), "fixed weights by modality; None: .55, .45, or .35, .25, .4, or 1/M"
    )
    head: Any = option(None, optional(part), "module from one feature to logits; None: the sole layer of the fusion")

    P: Tensor | None = state(None)
    calls: int = state(0)
    index: int = state(0)

    _shadow: Shadow | None = attrs.field(default=None, init=False, repr=False)
    _last: nn.Linear | None = attrs.field(default=None, init=False, repr=False)
    _weight_name: str = attrs.field(default="", init=False, repr=False)
    _is_checked: bool = attrs.field(default=False, init=False, repr=False)
    _ahead: PendingState | None = attrs.field(default=None, init=False, repr=False)

    def exemptions(self) -> Mapping[str, str]:
        """Return the rules of `modbalance.testing` that do not hold."""
        return {
            "accumulation": "the second sub-step of the head needs the first one of the whole batch",
            "order_of_modalities": "later modalities meet a head that earlier ones have moved",
        }

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Find the head and prepare a copy of it, or raise a ConfigError that names what does not fit."""
        if self.weights is not None and set(self.weights) != set(run.modalities):
            raise ConfigError(
                f"Option `weights` of method `mla` should give a number for each of {list(run.modalities)}. Found "
                f"{sorted(self.weights)}."
            )
        head = find_head(run, self.head)
        if self.projection != "off":
            self._last, self._weight_name = last_linear(head)
        self._shadow = run.shadow(head)
        run.provide_unimodal_logits(self.unimodal)

    @hookimpl
    def modbalance_epoch_start(self, run: Run, epoch: int) -> None:
        """Count the batches of the epoch from 0."""
        self.index = 0

    # The sub-steps

    @hookimpl
    def modbalance_takeover(self, batch: Batch) -> Tensor:
        """Return the sum of the losses L_m, each with the head as the sub-steps before have left its copy."""
        if batch.index and not batch.run.dry_run:
            raise ConfigError(
                "Method `mla` takes its sub-steps on whole batches. Found a second criterion call before `opt.step()`: "
                "train without accumulation over micro-batches; after a batch that is skipped call `opt.zero_grad()`, "
                "with gradients set to None, before the criterion."
            )
        if self.eval_weights != "fixed":
            batch.require_kind("classes", what="weighs modalities by the entropy of their predictions")
        features = batch.require_features()
        shadow = self.shadow
        for name, z in features.items():
            check_width(shadow.module, name, z)
        if not self._is_checked:
            check_inputs(shadow.module, batch)
            self._is_checked = True
        shadow.begin()
        self._ahead = ahead = PendingState(self.P, self.calls)
        losses = {name: self.substep(batch, name, z, ahead) for name, z in features.items()}
        batch.run.log_each("loss", [loss.detach() for loss in losses.values()])
        return shadow.with_zero_gradients(torch.stack([*losses.values()]).sum())

    def substep(self, batch: Batch, name: str, z: Tensor, ahead: PendingState) -> Tensor:
        """Return the loss of a modality alone, with graph to its encoder, and step the copy of the head by it."""
        with inputs_of(self._last) as entered:
            o = self.shadow(z)
        check_logits(o, batch.logits, name)
        loss = batch.losses({name: o})[name]
        r = mean_input(entered[-1].detach(), batch.present.get(name)) if entered else None
        found = of_all_ranks(batch, name, self.shadow.gradients(loss), r)
        self.project(found, ahead)
        ahead.calls += 1
        self.shadow.step(found.gradients, unless=found.is_absent)
        return loss if found.factor is None else loss * found.factor.to(loss)

    def project(self, found: SubStep, ahead: PendingState) -> None:
        """Update P by the mean input r of a sub-step and turn the gradient of the weight: grad W <- grad W P^T."""
        r, g, name = found.mean_input, found.gradients, self._weight_name
        if r is None:
            return
        if ahead.P is None:
            ahead.P = torch.eye(len(r), dtype=r.dtype, device=r.device)
        if not ahead.calls:
            return
        P, is_small = projection.updated(ahead.P, r, projection.rate(self.index, self.steps_per_epoch), self.projection)
        ahead.P = P if found.is_absent is None else torch.where(found.is_absent, ahead.P, P)
        ahead.small = is_small.to(r) if ahead.small is None else ahead.small + is_small
        if name in g:
            g[name] = (g[name].to(P) @ ahead.P.T).to(g[name])

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Remove the gradients of the head, which is stepped by its copy."""
        self.shadow.drop_gradients()

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        """Take over the head of the sub-steps, and the state of the projection."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return
        self.shadow.commit()
        if ahead.P is not None:
            self.P = kept(self.P, ahead.P)
        if ahead.small is not None:
            step.run.count("small_denominators", ahead.small, _SMALL)
        self.calls, self.index = ahead.calls, self.index + 1
        if self.idle == "coast":
            self.coast(step.run)

    def coast(self, run: Run) -> None:
        """Move the encoder of each modality once for every later one, along a gradient of 0."""
        for count in range(len(run.modalities) - 1, 0, -1):
            run.idle_step([p for m in run.modalities[:count] for _, p in run.parameters(m)])

    # Evaluation

    @hookimpl
    def modbalance_logits(self, batch: Batch) -> Tensor:
        """Return sum_m w_m o_m; in evaluation, since training takes the loss of each o_m alone."""
        if self.eval_weights != "fixed":
            batch.require_kind("classes", what="weighs modalities by the entropy of their predictions")
        o = self.unimodal(batch)
        for name, logits in o.items():
            check_logits(logits, batch.logits, name)
        return weights.fused(o, self.eval_weights, self.weights, batch.present)

    def unimodal(self, batch: Batch) -> dict[str, Tensor]:
        """Return o_m, (B, C, ...) each, with graph to features and head."""
        return {name: self.shadow.original(z) for name, z in batch.require_features().items()}

    @property
    def shadow(self) -> Shadow:
        """The copy of the head."""
        assert self._shadow is not None
        return self._shadow


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [MLA]
