"""The model under diagnosis: its structure without an optimizer, and batches with inputs, features and logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from modbalance._model.forward import Args, Inputs, Kwargs
from modbalance._model.rerun import Rerun, preserved
from modbalance._model.structure import Structure
from modbalance._model.unimodal import Unimodal
from modbalance._model.watch import Watch
from modbalance._ranks import Ranks
from modbalance._reporting import Telemetry
from modbalance._training import Training
from modbalance.context import Batch, Forwarder, Run
from modbalance.diagnosis._task import Task
from modbalance.errors import ConfigError, ObservationError


@attrs.frozen(eq=False)
class Subject:
    """One model and how it is looked at.

    Attributes:
        run: Run over a training without methods, whose hooks stand on the model during `watched` alone.
        task: Meaning of the logits.
        forward: ``(model, batch) -> (logits, target)``.
    """

    run: Run
    task: Task
    forward: Forwarder

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in fusion order."""
        return self.run.modalities

    @property
    def model(self) -> nn.Module:
        """The bare model."""
        assert self.run.model is not None
        return self.run.model

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the hooks of the diagnosis on the model in the body."""
        watch = self.run._training.watch
        watch.attach()
        try:
            yield
        finally:
            watch.remove()

    def batches(self, items: Iterable[Any], *, with_graph: bool = False) -> Iterator[Batch]:
        """Yield checked batches in eval mode; flags, buffers and the random state of the model are left as they were.

        Args:
            items: What the loader yields.
            with_graph: Whether the logits keep their graph.

        Raises:
            ConfigError: A batch has no target, logits and target do not fit, labels are out of range, or logits are
                not finite; the message names the batch.
        """
        for number, item in enumerate(items):
            where = f"batch {number} of the loader"
            with torch.enable_grad() if with_graph else torch.no_grad():
                batch = self._forward(item, where)
                self.task.check(batch.logits, batch.target, where)
            # Outside of the context, which would hold in the body of the caller's loop.
            yield batch

    def _forward(self, item: Any, where: str) -> Batch:
        seen_inputs: list[tuple[Args, Kwargs]] = []

        def remember(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            seen_inputs.append((args, kwargs))

        handle = self.model.register_forward_pre_hook(remember, with_kwargs=True)
        try:
            with preserved([self.model], training=False), self.run._training.watch.separately() as seen:
                found = self.forward(self.model, item)
        finally:
            handle.remove()
        logits, target = _pair(found, where)
        if not seen_inputs:
            raise ObservationError(
                f"The forward of the model should run for {where}. Found no call of {type(self.model).__name__}: let "
                "`forward=` call the model that it is given."
            )
        seen.replace_inputs(*seen_inputs[-1])
        seen.claim(logits, lambda output: self.task.logits_of(output, logits))
        loss = None if self.task.loss_fn is None else partial(_loss_of, self.task.loss_fn, target)
        return Batch(self.run, forward=seen, features=seen.features, logits=logits, target=target, task_loss=loss)


def subject_of(
    model: nn.Module,
    task: Task,
    forward: Forwarder,
    modalities: Mapping[str, Any],
    **description: Any,
) -> Subject:
    """Return a subject from the arguments that `BalancedOptimizer` describes a model by.

    Raises:
        ConfigError: The description does not fit the model.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"Parameter `model` should be a torch module. Found {type(model).__name__}.")
    parameters = [*model.parameters()]
    if not parameters:
        raise ConfigError(f"Parameter `model` should have parameters. Found none in {type(model).__name__}.")
    places = Inputs(description.pop("inputs"), description.pop("mask_value"))
    unimodal = description.pop("unimodal")
    holder = torch.optim.SGD(parameters, lr=0.0)  # names the parameters, and never steps
    structure = Structure(holder, model, modalities, description["fusion"], description["feature_sizes"], places)
    watch = Watch(structure)
    rerun, ranks = Rerun(structure, watch), Ranks(None)
    training = Training(
        structure, watch, rerun, Unimodal(unimodal, structure, rerun, ranks), ranks, Telemetry(), holder
    )
    return Subject(Run(training, "diagnosis"), task, forward)


def subject_in_training(training: Training, task: Task, forward: Forwarder) -> Subject:
    """Return a subject with the structure of a training; hooks and choices of that training stay as they are."""
    if training.structure.model is None:
        raise ConfigError("`opt.diagnose` needs a model that it can run. Found none: pass `model=` to the optimizer.")
    watch = Watch(training.structure)
    rerun = Rerun(training.structure, watch)
    unimodal = copy.copy(training.unimodal)
    unimodal.rerun = rerun
    parts = (training.structure, watch, rerun, unimodal, training.ranks, Telemetry(), training.optimizer)
    return Subject(Run(Training(*parts), "diagnosis"), task, forward)


def quiet(training: Training | None) -> Any:
    """Return a context in which the hooks of a training record nothing."""
    return nullcontext() if training is None else training.watch.paused()


def _pair(found: Any, where: str) -> tuple[Tensor, Any]:
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor):
        return found
    kinds = [type(each).__name__ for each in found] if isinstance(found, tuple) else type(found).__name__
    raise ConfigError(
        f"The forward should return one tensor of logits and the target for {where}. Found {kinds}: pass "
        "`forward=lambda model, batch: (logits, target)`."
    )


def _loss_of(loss_fn: Callable[..., Tensor], target: Any, logits: Tensor) -> Tensor:
    return loss_fn(logits, target)
