"""The life of a step: what is observed in the criterion becomes modulated gradients, and is committed or dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from modbalance import gradients, notices
from modbalance.capture import Forward
from modbalance.errors import CheckpointError, ObservationError
from modbalance.hooks import Hooks, check_needs
from modbalance.method import Method, WindowedMethod
from modbalance.modulation import apply_coefficients, check_names, named_tensors, steps_of
from modbalance.notices import Notices
from modbalance.pending import Pending, Phase
from modbalance.records import Batch, EpochData
from modbalance.run import Run


class Balancer:
    """Runs the hooks of all methods of one optimizer, in the order that `modbalance.hookspecs` gives."""

    def __init__(self, methods: Sequence[Method], run: Run, *, check_finite: bool) -> None:
        self.run = run
        self.check_finite = check_finite
        self.capture = run.capture
        self.notices = Notices()
        self.pending: Pending | None = None
        self._started_epoch = -1
        self._evaluations = 0
        self.learns_unseen = False
        self._epoch_was_set = False
        self.hooks = Hooks(methods, run)
        check_needs(self.hooks)
        self._connect()
        try:
            self._call_all("modbalance_setup", self.hooks.methods, run=run)
        except BaseException:
            self.capture.remove()
            raise
        if self.capture.take_over():
            self.notices.give(notices.EARLIER_OPTIMIZER)

    @property
    def active(self) -> list[Method]:
        """The methods that act in the current epoch, in order."""
        return self.hooks.active(self.run.epoch)

    def move_to_epoch(self, epoch: int) -> None:
        """Set the epoch, and record forwards only where a method looks at the steps of it."""
        self._epoch_was_set = self._epoch_was_set or epoch != self.run.epoch
        self.run.epoch = epoch
        active = self.active
        self.capture.enabled = bool(self.hooks.stepping(active))
        for method in [each for each in self.hooks.methods if each not in active]:
            self.run.telemetry.forget(method.name)

    def note_evaluation(self, learns: bool) -> None:
        """Note that the model is being evaluated, or trained in eval mode, where no method sees it."""
        self.capture.saw_evaluation = True
        self.learns_unseen = learns

    def note_training(self) -> None:
        """Warn if training goes on after a second evaluation and nobody ever said that an epoch is over."""
        if not self.capture.saw_evaluation:
            return
        self.capture.saw_evaluation = False
        self._evaluations += 1
        windowed = [method.name for method in self.hooks.methods if isinstance(method, WindowedMethod)]
        if self._evaluations > 1 and self.run.epoch == 0 and not self._epoch_was_set and windowed:
            self.notices.give(notices.EPOCH_NEVER_MOVES, methods=" and ".join(windowed))

    # In the criterion

    def criterion(self, batch: Batch, loss: Tensor | None = None) -> Tensor:
        """Return the loss of a training batch, having gathered its statistics.

        Args:
            batch: The batch with logits and target.
            loss: The user's loss where it is computed already (`opt.observe`).
        """
        assert batch.task_loss is not None or loss is not None
        forward = batch.forward
        if forward is not None and forward.is_observed:
            return loss if loss is not None else batch.task_loss(forward.current(batch.logits))  # type: ignore[misc]
        pending = self._begin()
        batch.index, pending.batches = pending.batches, pending.batches + 1
        active = self.active
        for method, observed in self.hooks.call_each("modbalance_observe", active, batch=batch):
            pending.add(method, named_tensors(method, "modbalance_observe", observed))
        if loss is None:
            batch.logits = self._replaced_logits(batch, active)
            loss = batch.task_loss(batch.logits)  # type: ignore[misc]
        self._check_loss(loss)
        if forward is not None:
            forward.is_observed = True
        return self._with_terms(loss, batch, active)

    def evaluate(self, batch: Batch) -> Tensor:
        """Return the user's loss in evaluation, on logits that a method may replace there too."""
        assert batch.task_loss is not None
        batch.logits = self._replaced_logits(batch, [method for method in self.active if method.acts_in_eval])
        return batch.task_loss(batch.logits)

    def _begin(self) -> Pending:
        pending = self.pending
        if pending is None or pending.phase is not Phase.GATHERING or self._gradients_are_none():
            self.pending = pending = Pending()
        self._start_epoch()
        return pending

    def _start_epoch(self) -> None:
        if self._started_epoch != self.run.epoch:
            self._started_epoch = self.run.epoch
            self._call_all("modbalance_epoch_start", self.active, run=self.run, epoch=self.run.epoch)

    def _gradients_are_none(self) -> bool:
        return all(parameter.grad is None for parameter in gradients.optimized(self.run.optimizer))

    def _replaced_logits(self, batch: Batch, methods: Sequence[Method]) -> Tensor:
        logits = batch.logits
        for _, new in self.hooks.call_each("modbalance_logits", methods, batch=batch):
            if new is not None and not self.run.dry_run:
                logits = new
        if batch.forward is not None:
            batch.forward.replaced = batch.logits, logits
        return logits

    def _with_terms(self, loss: Tensor, batch: Batch, methods: Sequence[Method]) -> Tensor:
        total = loss
        for method, terms in self.hooks.call_each("modbalance_losses", methods, batch=batch):
            for name, value in named_tensors(method, "modbalance_losses", terms, scalar=True).items():
                self.run.telemetry.log(f"{method.name}/loss/{name}", value)
                total = total + value
        return loss if self.run.dry_run else total

    def _check_loss(self, loss: Tensor) -> None:
        if self.check_finite and not bool(loss.detach().isfinite().all()):
            raise ObservationError(
                f"The loss should be finite (`check_finite=True`). Found {loss.detach().tolist()} in epoch "
                f"{self.run.epoch} after {self.run.steps} steps; no gradient was computed from it."
            )

    # In the step

    def modulate(self) -> None:
        """Turn gradients into modulated gradients, once per step; without a criterion call, leave them alone."""
        pending, active = self.pending, self.active
        if pending is None or pending.phase is Phase.MODULATED or not active:
            return
        pending.steps = steps_of(pending, active, self.run)
        harmless = gradients.sandbox(gradients.optimized(self.run.optimizer)) if self.run.dry_run else nullcontext()
        with harmless, torch.no_grad():
            for step in pending.steps:
                apply_coefficients(step, self.hooks.call(step.method, "modbalance_coefficients", step=step))
            for step in pending.steps:
                self.hooks.call(step.method, "modbalance_gradients", step=step)
        pending.phase = Phase.MODULATED

    def commit(self) -> None:
        """Let methods take over what this step showed, after an inner step that really happened."""
        pending, self.pending = self.pending, None
        self.learns_unseen = False
        self.capture.clear()
        if pending is None or not pending.steps:
            return
        with torch.no_grad():
            for step in pending.steps:
                self.hooks.call(step.method, "modbalance_after_step", step=step)
        self.run.steps += 1

    def complete(self) -> None:
        """Note that a GradScaler decides now: if it skips the step, the next criterion call begins a new one."""
        if self.pending is not None and self.pending.phase is Phase.GATHERING:
            self.pending.phase = Phase.COMPLETE

    # Between epochs

    def end_epoch(self, data: EpochData) -> None:
        """Let methods look at the data of an epoch, then advance."""
        self._call_all("modbalance_epoch_end", self.active, run=self.run, epoch=self.run.epoch, data=data)
        self.move_to_epoch(self.run.epoch + 1)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a restart, as tensors, numbers and strings.

        Raises:
            CheckpointError: Between the micro-batches of one step, whose gradients no checkpoint holds.
        """
        is_gathering = self.pending is not None and self.pending.phase is Phase.GATHERING
        if is_gathering and not self._gradients_are_none():
            raise CheckpointError(
                "The state should be saved after `opt.step()`. Found gradients of a criterion call since the last "
                "step, which no checkpoint holds: take the step first, or drop them by `opt.zero_grad()`."
            )
        return {
            "epoch": self.run.epoch,
            "started_epoch": self._started_epoch,
            "steps": self.run.steps,
            "should_stop": self.run.should_stop,
            "unimodal": self.run.unimodal.kind,
            "methods": {method.name: method.state_dict() for method in self.hooks.methods},
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned and `check_state` admitted."""
        device = self.run.device
        for method in self.hooks.methods:
            method.load_state_dict(method.moved_state(saved["methods"][method.name], device))
        self.pending = None
        self.run.steps, self.run.should_stop = saved["steps"], saved["should_stop"]
        if self.run.unimodal.chooses and saved["unimodal"] in ("auto", "slice", "zero"):
            self.run.unimodal.kind = saved["unimodal"]
        self._started_epoch = saved["started_epoch"]
        self.move_to_epoch(saved["epoch"])

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Raise a CheckpointError unless a saved state is of these methods."""
        ours, theirs = [method.name for method in self.hooks.methods], list(saved["methods"])
        if ours != theirs:
            raise CheckpointError(
                f"The checkpoint should be of the methods {ours or ['none']}. Found {theirs or ['none']}: build "
                "BalancedOptimizer with the same `method=`, or load only the inner part, "
                "`opt.load_state_dict({k: v for k, v in saved.items() if k != 'modbalance'})`."
            )
        for method in self.hooks.methods:
            method.check_state(saved["methods"][method.name])

    def detach(self) -> None:
        """Take all hooks off the model and drop all methods."""
        self.capture.remove()
        self.pending = None
        self.hooks = Hooks([], self.run)
        self.capture.enabled = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"pending": None, "hooks": self.hooks.methods}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.hooks = Hooks(state["hooks"], self.run)
        self._connect()

    def _connect(self) -> None:
        if self.hooks.implementers("modbalance_inputs"):
            self.capture.edit_inputs = self._edit_inputs
        if self.hooks.implementers("modbalance_features"):
            self.capture.edit_features = self._edit_features
        if self.hooks.methods:
            self.capture.attach()
        self.move_to_epoch(self.run.epoch)

    def _edit_inputs(self, forward: Forward) -> Mapping[str, Any] | None:
        assert forward.inputs is not None
        inputs = self.run.topology.inputs.read(*forward.inputs, self.run.modalities)
        return self._edit("modbalance_inputs", forward, "inputs", inputs)

    def _edit_features(self, forward: Forward) -> Mapping[str, Any] | None:
        return self._edit("modbalance_features", forward, "features", forward.features)

    def _edit(self, hook: str, forward: Forward, argument: str, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
        self._start_epoch()
        current, is_new = values, False
        batch = Batch(self.run, forward=forward, features=forward.features)
        for method in self.hooks.implementers(hook, self.active):
            new = self.hooks.call(method, hook, batch=batch, **{argument: current})
            if new is not None:
                check_names(method, hook, new, self.run.modalities)
                current, is_new = {**current, **new}, True
        return current if is_new and not self.run.dry_run else None

    def _call_all(self, hook: str, methods: Sequence[Method], **arguments: Any) -> None:
        for method in self.hooks.implementers(hook, methods):
            self.hooks.call(method, hook, **arguments)
