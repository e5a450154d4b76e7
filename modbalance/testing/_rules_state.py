"""Rules on state: resumption, steps that never happen, trainings side by side, composition."""

from __future__ import annotations

import io
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from modbalance.context import Batch, Step
from modbalance.hookspecs import hookimpl
from modbalance.method import Method
from modbalance.testing._case import Case, Training, different, require_finite, require_same
from modbalance.testing._report import RuleError
from modbalance.testing._rules import rule


@rule
def resumption(case: Case) -> None:
    """A run that is saved and resumed is bitwise the uninterrupted one, wherever it is interrupted.

    Long trainings are interrupted; a running mean or a counter outside of the state makes another training of them.
    """
    whole = case.training()
    data = whole.data()
    whole.run(data)
    fix = "declare what must survive with `state(default)`: tensors, numbers, strings, lists and dicts of these"
    for stop in range(len(data)):
        after = _resumed(case, case.training().run(data, stop=stop)).run(data, start=stop)
        words = f"after an interruption after {stop} steps, the {{}} of the uninterrupted run"
        require_same(after.weights(), whole.weights(), words.format("weights"), fix)
        require_same(after.saved(), whole.saved(), words.format("state"), fix)


def _resumed(case: Case, before: Training) -> Training:
    """Return a training that goes on from what one has saved."""
    file = io.BytesIO()
    torch.save([before.model.state_dict(), before.optimizer.state_dict()], file)
    file.seek(0)
    model, optimizer = torch.load(file, weights_only=True)
    after = case.training(seed=7)
    after.model.load_state_dict(model)
    after.optimizer.load_state_dict(optimizer)
    return after


@rule
def skipped_step(case: Case) -> None:
    """A step that a GradScaler skips leaves no trace in the method.

    The weights have not moved: averages, counters and noise must not either.
    """
    trainings = [case.training(), case.training()]
    data = trainings[0].data()
    for training, chosen, bad in zip(trainings, (data, [*data[:2], *data[3:]]), (2, -1), strict=True):
        _train_scaled(training, chosen, bad)
    fix = "change state in `modbalance_after_step` and in the epoch hooks alone"
    require_same(trainings[0].weights(), trainings[1].weights(), "the weights of a run without that batch", fix)
    require_same(trainings[0].saved(), trainings[1].saved(), "the state of a run without that batch", fix)


def _train_scaled(training: Training, data: list[Any], bad: int) -> None:
    """Train with a scaler, which skips the step of batch number ``bad``."""
    scaler = GradScaler("cpu", init_scale=2.0**10)
    for index, (inputs, target) in enumerate(data):
        training.optimizer.zero_grad()
        scaler.scale(training.criterion(training.model(*inputs), target)).backward()
        if index == bad:
            for parameter in training.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.inf)
        scaler.step(training.optimizer)
        scaler.update()


@rule
def independence(case: Case) -> None:
    """One method object serves several trainings, which know nothing of each other.

    Comparisons build many optimizers in one process; state in a class or a module would join them.
    """
    method = case.build()
    first, second = case.training(method=method), case.training(method=method)
    data = first.data()
    for index in range(len(data)):
        first.run(data, start=index, stop=index + 1)
        second.run(data, start=index, stop=index + 1)
    third = case.training(method=method).run(data)
    fix = "keep state in `state(default)` of the method, not in class attributes, globals and mutable defaults"
    alone = case.training().run(data)
    for name, training in {"one of two side by side": second, "a later one": third}.items():
        require_same(training.weights(), alone.weights(), f"in a training that is {name}, the weights of it alone", fix)


@attrs.define(eq=False, kw_only=True)
class Onlooker(Method):
    """Has hooks and no effect."""

    name = "onlooker"

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        """Return a sum."""
        return {"score": torch.ones(())}

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Log the sum."""
        step.run.log("score", step.stats["score"])


@attrs.define(eq=False, kw_only=True)
class Halving(Method):
    """Halves the gradients of all encoders."""

    name = "halving"

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return 1/2 for each modality."""
        return {name: torch.full((), 0.5) for name in step.run.modalities}


@rule
def composition(case: Case) -> None:
    """Beside another method, before or after it, both act.

    Users combine methods; statistics, caches and gradients of one are not those of the other.
    """
    alone = case.training().run()
    for order in (slice(None), slice(None, None, -1)):
        methods: list[Method] = [case.build(), Onlooker()]
        require_same(
            case.training(method=methods[order]).run().weights(),
            alone.weights(),
            "beside a method that changes nothing, the weights of the method alone",
            "read `step.stats` and `batch.cache` by your own names, and no other method's values",
        )
        both = case.training(method=[case.build(), Halving()][order]).run()
        require_finite(both, "beside a method that halves the gradients")
        if not different(both.weights(), alone.weights(), among="encoders"):
            raise RuleError(
                "beside a method that halves the gradients of encoders, other weights of encoders than without it",
                "the same weights: the coefficients of the other method were lost",
                "edit gradients in place, from what stands there; never put back gradients of an earlier hook",
            )
