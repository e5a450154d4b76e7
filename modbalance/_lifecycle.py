"""The life of an optimizer step, from the criterion to the commit, and the hooks that fire on the way.

    criterion call   `observe`: statistics of each method are gathered, logits replaced, loss terms added
    backward         by the user
    `modulate`       statistics are summed over ranks; coefficients scale gradients; methods edit gradients
    inner step       by the optimizer
    `commit`         methods take over state from the step

A criterion call after `modulate` or `commit`, or while all gradients are ``None``, drops an uncommitted step and begins
a new one. The table of all events stands in docs/architecture.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from modbalance import _reporting, gradients
from modbalance._hook_results import check_names, named_tensors
from modbalance._joint import name_of
from modbalance._model.compiled import respect_hooks
from modbalance._model.forward import Forward
from modbalance._plugins import Hooks
from modbalance._terms import Key, ScaleWatch, Term, require_recorded
from modbalance._training import Training
from modbalance._warnings import TrainingWarnings
from modbalance.context import Batch, EpochData, Run, Step
from modbalance.errors import CheckpointError, ConfigError, ObservationError
from modbalance.hookspecs import HOOKS
from modbalance.method import Method
from modbalance.scores import Score
from modbalance.sharding import reshard

Sums = dict[str, Tensor]


class Phase(enum.Enum):
    """How far a step has come."""

    GATHERING = "criterion calls add statistics"
    COMPLETE = "a GradScaler is about to take it or skip it"
    MODULATED = "gradients are modulated, nothing is committed"


@attrs.define(eq=False)
class PendingStep:
    """Statistics gathered for the current optimizer step.

    Attributes:
        phase: How far the step has come.
        batches: Number of batches so far.
        follows_gradients: Whether gradients stood when the step began, such as those of the step before.
        sums: Named sums over these batches, by method.
        terms: Sums of gradients of single loss terms, by method.
        steps: The argument of step hooks for each method, from `modulate` on.
    """

    phase: Phase = Phase.GATHERING
    batches: int = 0
    follows_gradients: bool = False
    sums: dict[str, Sums] = attrs.field(factory=dict)
    terms: dict[str, dict[Key, Tensor]] = attrs.field(factory=dict)
    steps: list[Step] = attrs.field(factory=list)

    @property
    def is_half(self) -> bool:
        """Whether gradients that stand now are a part of this step, of statistics that are gathered for it."""
        is_gathering = self.phase is Phase.GATHERING and bool(self.sums or self.terms)
        return is_gathering and (self.batches > 1 or not self.follows_gradients)

    def add(self, method: Method, observed: Mapping[str, Tensor]) -> None:
        """Add the named sums of one batch."""
        sums = self.sums.setdefault(method.name, {})
        for name, value in observed.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()

    def add_terms(self, method: str, found: Mapping[Key, Tensor]) -> None:
        """Add gradients of the loss terms of one batch."""
        sums = self.terms.setdefault(method, {})
        for key, value in found.items():
            sums[key] = sums[key] + value if key in sums else value


class Lifecycle:
    """Runs the hooks of all methods of one optimizer, in the order of `modbalance.hookspecs`."""

    def __init__(self, methods: Sequence[Method], training: Training, *, check_finite: bool) -> None:
        self.training = training
        self.check_finite = check_finite
        self.warnings = TrainingWarnings(training)
        self.pending: PendingStep | None = None
        self.is_restored = self._has_begun = False
        self.on_loss: Callable[[Tensor], object] | None = None
        self._scale = ScaleWatch(training)
        self._checked_graphs = -1
        self._started_epoch = -1
        self._use(methods)
        self._check_methods()
        self._connect()
        try:
            self._on_run("modbalance_setup", self.hooks.implementers("modbalance_setup"))
            self._look_up_active()
        except BaseException:
            self.training.watch.remove()
            raise
        if self.training.watch.take_over():
            self.warnings.notices.give(_reporting.EARLIER_OPTIMIZER)
        if training.update is None:
            self.warnings.of_invariance()

    @property
    def methods(self) -> list[Method]:
        """All methods, in order."""
        return self.hooks.methods

    @property
    def active(self) -> list[Method]:
        """The methods that act in the current epoch, in order."""
        return self._active

    def acting(self, hook: str) -> list[Method]:
        """Return the methods that act in the current epoch and implement a hook, in order."""
        return self._acting[hook]

    @property
    def observing(self) -> tuple[str, ...]:
        """Names of the methods that may gather statistics, or gradients of loss terms, in the current epoch."""
        hooks = ("modbalance_observe", "modbalance_losses")
        return tuple(method.name for method in self._active if any(method in self.acting(hook) for hook in hooks))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in fusion order."""
        return self.run.modalities

    # In the criterion

    @property
    def needs(self) -> set[str]:
        """The needs of the methods that act in the current epoch, see `Method.needs`."""
        return self._needs

    def set_loss(self, loss_fn: Callable[..., Tensor], scorer: Score) -> None:
        """Take over the loss and the score of the latest `opt.criterion`, for methods that measure between epochs."""
        self.training.loss_fn, self.training.scorer = loss_fn, scorer

    def is_training(self, differentiable: Tensor) -> bool:
        """Return whether methods observe a criterion call on this tensor; evaluation and training are noted."""
        watch, model = self.training.watch, self.run.model
        learns = torch.is_grad_enabled() and differentiable.requires_grad
        if not learns or (model is not None and not model.training):
            watch.saw_evaluation = True
            self.warnings.saw_evaluation(learns=learns)
            return False
        if watch.saw_evaluation:
            watch.saw_evaluation = False
            self.warnings.saw_training_again()
        return bool(self.active)

    def forward_of(self, logits: Tensor, logits_of: Callable[[Any], Tensor]) -> Forward:
        """Return the forward that logits belong to; one warning if an earlier one is left without criterion call."""
        forward, leaves_another = self.training.watch.claim(logits, logits_of)
        if leaves_another:
            self.warnings.notices.give(_reporting.TWO_FORWARDS)
        return forward

    @_disable_dynamo  # a criterion in a compiled function: as for the two halves of a step
    def observe(self, batch: Batch, loss: Tensor | None = None) -> Tensor:
        """Return the loss of a training batch, and gather its statistics.

        Args:
            batch: The batch with logits and target.
            loss: The user's loss where it is computed already (`opt.observe`).
        """
        assert batch.task_loss is not None or loss is not None
        forward = batch.forward
        if forward is not None and forward.is_observed:
            self._refuse_further_terms()
            return loss if loss is not None else batch.task_loss(forward.current(batch.logits))  # type: ignore[misc]
        pending = self._begin()
        batch.index, pending.batches = pending.batches, pending.batches + 1
        for method, observed in self._on_batch("modbalance_observe", batch):
            pending.add(method, named_tensors(method, "modbalance_observe", observed))
        if loss is None:
            loss = self._taken_over(batch)
        if loss is None:
            batch.logits = self._replaced_logits(batch, self.acting("modbalance_logits"))
            loss = batch.task_loss(batch.logits)  # type: ignore[misc]
        self._check_loss(loss)
        if forward is not None:
            forward.mark_observed()
        batch.loss = loss
        return self._with_terms(loss, batch)

    def heard(self, loss: Tensor) -> Tensor:
        """Return a loss, after whoever listens has heard of it if it is one of training."""
        if self.on_loss is not None and loss.requires_grad and (self.run.model is None or self.run.model.training):
            self.on_loss(loss.detach())
        return loss

    def evaluated(
        self,
        logits: Tensor,
        features: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the fused logits, or what a method puts in their place in evaluation, too."""
        acting = [method for method in self.acting("modbalance_logits") if method.acts_in_eval]
        if not acting:
            return logits
        watch = self.training.watch
        forward = watch.evaluated or watch.forward or Forward()
        seen = forward.features if features is None else features
        batch = Batch(self.run, forward=forward, features=seen, logits=logits, present=present or {})
        for method in acting:
            new = self.hooks.call(method, "modbalance_logits", batch=batch._seen_by(self._runs[method.name]))
            logits = logits if new is None or self.training.dry_run else new
        return logits

    def _begin(self) -> PendingStep:
        pending = self.pending
        is_clean = self._gradients_are_none()
        if pending is None or pending.phase is not Phase.GATHERING or is_clean:
            self.pending = pending = PendingStep(follows_gradients=not is_clean)
        self._start_epoch()
        return pending

    def _start_epoch(self) -> None:
        epoch, before = self.training.epoch, self._started_epoch
        if before == epoch:
            return
        self._started_epoch = epoch  # already here: a hook may run the model
        try:
            self._on_run("modbalance_epoch_start", self.acting("modbalance_epoch_start"), epoch=epoch)
        except BaseException:
            self._started_epoch = before
            raise

    def _before_forward(self) -> None:
        if self._started_epoch != self.training.epoch:
            self._start_outside_of_graphs()

    @_disable_dynamo  # for a model that is compiled in place, whose hooks are traced with it
    def _start_outside_of_graphs(self) -> None:
        self._start_epoch()

    def _gradients_are_none(self) -> bool:
        return gradients.are_none(self.training.optimizer)

    def _taken_over(self, batch: Batch) -> Tensor | None:
        """Return the loss of the method that takes it over, ``None``: there is none, or it may change nothing."""
        for method, loss in self._on_batch("modbalance_takeover", batch):
            if loss is not None:
                taken = named_tensors(method, "modbalance_takeover", {"loss": loss}, scalar=True)["loss"]
                return None if self.training.dry_run else taken
        return None

    def _refuse_further_terms(self) -> None:
        for method in self.acting("modbalance_takeover"):
            if not self.training.dry_run:
                raise ConfigError(
                    f"Method `{method.name}` takes over the loss of a forward, once. Found a second criterion call on "
                    "the same forward: add further terms that do not depend on the logits to the loss that the first "
                    "call returns."
                )

    def _replaced_logits(self, batch: Batch, methods: Sequence[Method]) -> Tensor:
        logits = batch.logits
        for method in methods:
            new = self.hooks.call(method, "modbalance_logits", batch=batch._seen_by(self._runs[method.name]))
            if new is not None and not self.training.dry_run:
                logits = new
        if batch.forward is not None:
            batch.forward.replace_logits(batch.logits, logits)
        return logits

    def _with_terms(self, loss: Tensor, batch: Batch) -> Tensor:
        total = loss
        for method, terms in self._on_batch("modbalance_losses", batch):
            for name, value in named_tensors(method, "modbalance_losses", terms, scalar=True).items():
                self._runs[method.name].log(f"loss/{name}", value)
                total = total + value
        total = loss if self.training.dry_run else total
        if batch._terms and total.requires_grad:
            total = total if total.grad_fn is not None else total.clone()
            total.register_hook(self._gathering(batch._terms))  # type: ignore[no-untyped-call]
        return total

    def _gathering(self, terms: Mapping[str, Sequence[Term]]) -> Callable[[Tensor], None]:
        """Return a hook on the loss that adds the gradients of terms to the step, when the backward begins."""
        pending = self.pending
        assert pending is not None
        if self._checked_graphs != self.training.epoch:
            self._checked_graphs = self.training.epoch
            require_recorded(term for each in terms.values() for term in each)
        if self.training.ranks.count > 1:
            # Ranks without a backward take part in the reduction, too.
            for method, each in terms.items():
                zeros = {key: value for term in each for key, value in term.zeros().items()}
                pending.terms[method] = zeros | pending.terms.get(method, {})

        self._scale.watch()

        def gather(arrived: Tensor) -> None:
            for method, each in terms.items():
                for term in each:
                    pending.add_terms(method, term.gradients(arrived))

        return gather

    def _check_loss(self, loss: Tensor) -> None:
        if self.check_finite and not bool(loss.detach().isfinite().all()):
            raise ObservationError(
                f"The loss should be finite (`check_finite=True`). Found {loss.detach().tolist()} in epoch "
                f"{self.training.epoch} after {self.training.steps} steps; no gradient was computed from it."
            )

    # In the step

    def modulate(self) -> None:
        """Turn gradients into modulated gradients, once per step; without a criterion call, leave them alone."""
        pending = self.pending
        if pending is None or pending.phase is Phase.MODULATED or not self.active:
            return
        if self._gradients_are_none():
            # No backward followed, or its gradients were dropped: the inner step does nothing.
            if self.training.ranks.count > 1:
                self._summed(pending, self.active)  # other ranks may have gradients, and wait in this reduction
            self.pending = None
            return
        if self.training.update is None:
            self.warnings.of_changed_gradients()
        pending.steps = self._summed(pending, self.active)
        is_dry = self.training.dry_run
        harmless = gradients.sandbox(self.run.optimized_parameters()) if is_dry else nullcontext()
        with harmless, torch.no_grad():
            for step in pending.steps:
                _apply_coefficients(step, self.hooks.call(step.method, "modbalance_coefficients", step=step))
            if self.training.update is None:
                _scale_terms(pending.steps)
            for step in pending.steps:
                self.hooks.call(step.method, "modbalance_gradients", step=step)
        pending.phase = Phase.MODULATED

    def commit(self) -> None:
        """Let methods take over state from this step, after an inner step that really happened."""
        pending, self.pending = self.pending, None
        self.warnings.saw_step()
        self.training.watch.clear()
        if pending is None or not pending.steps:
            return
        if self.acting("modbalance_after_step"):
            with torch.no_grad():
                for step in pending.steps:
                    self.hooks.call(step.method, "modbalance_after_step", step=step)
        self.training.steps += 1

    def before_inner_step(self) -> None:
        """Keep the weights before the inner step, where its update is to be scaled."""
        if self.training.update is not None:
            steps = [] if self.pending is None or self.training.dry_run else self.pending.steps
            self.training.update.before_step(
                (step.parameters(name), coefficient)
                for step in steps
                for name, coefficient in step.coefficients.items()
            )

    def after_inner_step(self) -> None:
        """Scale the update that the inner step has made, where coefficients apply to that; then commit."""
        if self.training.update is not None:
            self.training.update.after_step()
        self.commit()

    def drop_pending(self) -> None:
        """Forget the pending step: its gradients served a pass before the one that counts, such as the first of SAM."""
        self.pending = None
        self.training.watch.clear()

    def complete(self) -> None:
        """Note that a GradScaler decides now: if it skips the step, the next criterion call begins a new one."""
        if self.pending is not None and self.pending.phase is Phase.GATHERING:
            self.pending.phase = Phase.COMPLETE

    def _summed(self, pending: PendingStep, methods: Sequence[Method]) -> list[Step]:
        """Return the argument of step hooks for each method, its sums added over all ranks in one reduction."""
        reduced = {method.name: method.reduced for method in self.methods}
        keys = [(method, name) for method, sums in pending.sums.items() for name in sums if name not in reduced[method]]
        places = [(method, key) for method, found in pending.terms.items() for key in found]
        values = [pending.sums[method][name] for method, name in keys]
        values += [pending.terms[method].pop(key) for method, key in places]
        totals = self.training.ranks.sum_of_step(values, self.observing)
        del values
        stats: dict[str, Sums] = {method.name: dict(pending.sums.get(method.name, {})) for method in methods}
        for (method, name), total in zip(keys, totals[: len(keys)], strict=True):
            stats.setdefault(method, {})[name] = total
        of_terms = totals[len(keys) :]
        del totals
        terms = self._mean_terms(places, of_terms)
        return [Step(self._runs[m.name], m, stats[m.name], terms=terms.get(m.name, {})) for m in methods]

    def _mean_terms(
        self, places: Sequence[tuple[str, Key]], totals: list[Tensor]
    ) -> Mapping[str, Mapping[Key, Tensor]]:
        """Return gradients of loss terms as those of parameters are: means over ranks, unscaled where these are.

        They are copies, which a method may change. The originals leave the list one by one, so that copies of equal
        sizes reuse their memory: fresh memory costs several times as much as the arithmetic.
        """
        terms: dict[str, dict[Key, Tensor]] = {}
        scale, count = self._scale.ratio() if places else None, self.training.ranks.count
        totals.reverse()
        for method, key in places:
            total = totals.pop()
            mean = total / count if count > 1 else total.clone() if scale is None else total
            terms.setdefault(method, {})[key] = mean if scale is None else mean * scale.to(mean)
            del total, mean
        return terms

    # Between epochs

    def begin(self, data: EpochData) -> None:
        """Run the hooks before the first step; none in a training that has begun, whose state stands already."""
        self.training.forward = data.forward
        has_moved = self.training.steps or self.training.epoch
        if not (has_moved or (self.is_restored and self._has_begun)):
            self._on_run("modbalance_begin", self.hooks.implementers("modbalance_begin"), data=data)
        self._has_begun = True

    def set_epoch(self, epoch: int) -> None:
        """Take over the epoch that the user counts, which may be the current one."""
        self.warnings.epoch_was_set = True
        self.move_to_epoch(epoch)

    def move_to_epoch(self, epoch: int) -> None:
        """Set the epoch, and record forwards only where a method acts in the steps of it."""
        training = self.training
        self.warnings.epoch_was_set |= epoch != training.epoch
        training.epoch = epoch
        if self.pending is not None and self.pending.phase is not Phase.GATHERING:
            self.pending = None  # skipped by a GradScaler
        self._look_up_active()
        for method in [each for each in self.methods if each not in self._active]:
            training.telemetry.forget(method.name)

    def _look_up_active(self) -> None:
        # Once an epoch, and for all hooks: a step asks many times, also in a forward that dynamo traces.
        self._active = self.hooks.active(self.training.epoch)
        self._needs = {need for method in self._active for need in method.needs}
        self._acting = {hook: self.hooks.implementers(hook, self._active) for hook in HOOKS}
        self._stepping = self.hooks.stepping(self._active)
        self.training.watch.enabled = bool(self._stepping)
        self.training.watch.sees_evaluation = any(method.acts_in_eval for method in self._acting["modbalance_logits"])

    def end_epoch(self, data: EpochData) -> None:
        """Run the hooks at the end of an epoch, then advance."""
        if self.run.model is not None:
            reshard(self.run.model)  # weights that an evaluation by the user leaves whole are copies
        epoch, hook = self.training.epoch, "modbalance_epoch_end"
        ending = self.hooks.implementers(hook, [method for method in self.methods if method.ends_epoch(epoch)])
        self._on_run(hook, ending, epoch=epoch, data=data)
        self.move_to_epoch(epoch + 1)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the state that must survive a restart, as tensors, numbers and strings.

        It is that of the last whole step: methods take over nothing before the commit.
        """
        return {
            "epoch": self.training.epoch,
            "started_epoch": self._started_epoch,
            "steps": self.training.steps,
            "should_stop": self.training.should_stop,
            "unimodal": self.training.unimodal.kind,
            "methods": {method.name: method.state_dict() for method in self.methods},
            "begun": self._has_begun,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned and `check_state` admitted."""
        device = self.run.device
        for method in self.methods:
            method.load_state_dict(method.moved_state(saved["methods"][method.name], device))
        self.pending, self.is_restored = None, True
        self._has_begun = saved.get("begun", False)
        self.training.steps, self.training.should_stop = saved["steps"], saved["should_stop"]
        self.training.unimodal.restore_choice(saved["unimodal"])
        self._started_epoch = saved["started_epoch"]
        self.move_to_epoch(saved["epoch"])

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Raise a CheckpointError unless a saved state is of these methods."""
        ours, theirs = [method.name for method in self.methods], list(saved["methods"])
        if ours != theirs:
            raise CheckpointError(
                f"The checkpoint should be of the methods {ours or ['none']}. Found {theirs or ['none']}: build "
                "BalancedOptimizer with the same `method=`, or load only the inner part, "
                "`opt.load_state_dict({k: v for k, v in saved.items() if k != 'modbalance'})`."
            )
        for method in self.methods:
            method.check_state(saved["methods"][method.name])

    def detach(self) -> None:
        """Take all hooks off the model and drop all methods."""
        self.warnings.detach()
        self._scale.remove()
        self.training.watch.remove()
        self.training.unimodal_source = None
        self.pending = self.training.update = None
        self._use([])
        self._look_up_active()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"pending": None, "on_loss": None, "hooks": self.methods}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._use(state["hooks"])
        self._connect()

    def warn_before_step(self) -> None:
        """Warn of what is missing for the coming step, or raise a ConfigError if no parameter can be modulated."""
        self.warnings.of_parameters()
        if self.pending is None:
            self.warnings.of_missing_criterion(self._stepping)

    def warn_of_half_step(self) -> None:
        """Warn before a state is saved between the micro-batches of a step, whose gradients no checkpoint holds."""
        if self.pending is not None and self.pending.is_half and not self._gradients_are_none():
            self.warnings.notices.give(_reporting.SAVED_WITHIN_A_STEP)

    def describe(self, clip_grad_norm: float | None) -> str:
        """Return the text of `opt.describe()`."""
        training = self.training
        encoders = {name: training.structure.listed(name) for name in self.modalities}
        clip = "no clip" if clip_grad_norm is None else f"clip to norm {clip_grad_norm}"
        dry_run = " (dry run)" if training.dry_run else ""
        inner = name_of(training.optimizer)
        taken = f"modulate, {clip}, {inner}.step"
        if training.update is not None:
            taken = f"{clip}, {inner}.step, coefficients times its update (apply='update')"
        lines = [
            f"step: {taken}{dry_run}",
            f"unimodal logits: {training.unimodal.kind}; epoch {training.epoch}; {training.steps} modulated steps "
            "taken",
        ]
        return _reporting.describe(encoders, [(each, self.hooks.hooks_of(each)) for each in self.methods], lines)

    # Hooks

    def _use(self, methods: Sequence[Method]) -> None:
        self.hooks = self.warnings.hooks = Hooks(methods)
        self.run = Run(self.training)
        self._runs = {method.name: Run(self.training, method.name) for method in methods}

    def _check_methods(self) -> None:
        """Raise a ConfigError unless the methods go together, and with the model and the modalities."""
        refusals = [each.update_refusal() for each in self.methods] if self.training.update is not None else []
        for method, reason in zip(self.methods, refusals, strict=False):
            if reason is not None:
                raise ConfigError(
                    '`apply="update"` applies coefficients to the update of the inner optimizer, and should go with '
                    f"methods that give coefficients. Found `{method.name}`, {reason}."
                )
        for hook, what in (("modbalance_logits", "replace the logits"), ("modbalance_takeover", "take over the loss")):
            several = [method.name for method in self.hooks.implementers(hook)]
            if len(several) > 1:
                raise ConfigError(
                    f"At most one method should {what}. Found {' and '.join(several)}: choose one of them."
                )
        self._check_exclusions()
        if self.hooks.implementers("modbalance_coefficients"):
            self.training.structure.require_disjoint()
        for method in self.methods:
            _check_needs(method, self.run)

    def _check_exclusions(self) -> None:
        """Raise a ConfigError where a method would undo the effect that another one has through a hook."""
        for method in self.methods:
            for hook in sorted(method.excluded_hooks):  # the same message in every process
                others = [each.name for each in self.hooks.implementers(hook) if each is not method]
                if others:
                    raise ConfigError(
                        f"Method `{method.name}` should stand without a method that implements `{hook}`, whose effect "
                        f"it would undo. Found {' and '.join(others)}: choose one of them."
                    )

    def _connect(self) -> None:
        watch = self.training.watch
        if any(method.starts_before_forward() for method in self.methods):
            watch.before_forward = self._before_forward
        if self.hooks.implementers("modbalance_inputs"):
            watch.edit_inputs = self._edit_inputs
        if self.hooks.implementers("modbalance_features"):
            watch.edit_features = self._edit_features
        if self.run.model is not None:
            respect_hooks(self.run.model)
        if self.methods:
            watch.attach()
            self.warnings.watch_gradients()
        self.move_to_epoch(self.training.epoch)

    def _edit_inputs(self, forward: Forward) -> Mapping[str, Any] | None:
        assert forward.inputs is not None
        inputs = self.training.structure.inputs.read(*forward.inputs, self.modalities)
        return self._edit("modbalance_inputs", forward, "inputs", inputs)

    def _edit_features(self, forward: Forward) -> Mapping[str, Any] | None:
        return self._edit("modbalance_features", forward, "features", forward.features)

    def _edit(self, hook: str, forward: Forward, argument: str, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
        self._start_epoch()
        current, is_new = values, False
        for method in self.acting(hook):
            batch = Batch(self._runs[method.name], forward=forward, features=forward.features)
            new = self.hooks.call(method, hook, batch=batch, **{argument: current})
            if new is not None:
                check_names(method, hook, new, self.modalities)
                current, is_new = {**current, **new}, True
        return current if is_new and not self.training.dry_run else None

    def _on_batch(self, hook: str, batch: Batch) -> Iterator[tuple[Method, Any]]:
        """Call a hook of every method that acts and implements it, in order, and yield (method, result)."""
        for method in self.acting(hook):
            yield method, self.hooks.call(method, hook, batch=batch._seen_by(self._runs[method.name]))

    def _on_run(self, hook: str, methods: Sequence[Method], **arguments: Any) -> None:
        for method in methods:
            self.hooks.call(method, hook, run=self._runs[method.name], **arguments)


def _check_needs(method: Method, run: Run) -> None:
    modalities = run.modalities
    if len(modalities) < method.min_modalities:
        raise ConfigError(
            f"Method `{method.name}` needs at least {method.min_modalities} modalities. Found "
            f"{list(modalities)}: pass `modalities={{'audio': 'audio_net', ...}}` with `model=`, or give the "
            "parameter groups of the optimizer a key, {'params': ..., 'modality': 'audio'}."
        )
    if "model" in method.needs and run.model is None:
        raise ConfigError(
            f"Method `{method.name}` runs parts of the model itself. Found no model: pass `model=`, `modalities=` "
            "and `fusion=` to BalancedOptimizer."
        )


def _apply_coefficients(step: Step, returned: object) -> None:
    """Note and log coefficients, one that is not finite as 1; scale gradients by them where they apply to these."""
    method, run = step.method, step.run
    given = named_tensors(method, "modbalance_coefficients", returned, names=run.modalities, scalar=True)
    step.coefficients = _finite(step, given) if given else {}
    for name, coefficient in step.coefficients.items():
        run.log(f"coefficient/{name}", coefficient)
        if run._training.update is None:
            gradients.scale_(step.parameters(name), coefficient)


def _scale_terms(steps: Sequence[Step]) -> None:
    """Scale gradients of loss terms by the coefficients that scaled the gradients of the encoders."""
    for step in [each for each in steps if each.terms]:
        terms = dict(step.terms)
        for other in [each for each in steps if each.coefficients]:
            for name, coefficient in other.coefficients.items():
                scaled = {id(p) for p in other.parameters(name)}
                chosen = {("encoder", name, key) for key, p in step.run.parameters(name) if id(p) in scaled}
                terms.update({key: value * coefficient.to(value) for key, value in terms.items() if key in chosen})
        step.terms = terms


def _finite(step: Step, coefficients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the coefficients, 1 in the place of those that are not finite, which are counted."""
    device = next(iter(coefficients.values())).device
    values = torch.stack([value.to(device) for value in coefficients.values()])
    is_bad = values * 0 != 0
    keys = [f"{step.method.name}/nonfinite/{name}" for name in coefficients]
    step.run._training.telemetry.count_all(keys, is_bad)
    return dict(zip(coefficients, values.masked_fill(is_bad, 1).unbind(), strict=True))
