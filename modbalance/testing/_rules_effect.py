"""Rules on the effect of a method: that it has one, and where it must have none."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modbalance.method import WindowedMethod
from modbalance.testing._case import STEPS, Case, Training, different, require_finite, require_same
from modbalance.testing._report import RuleError
from modbalance.testing._rules import rule


@rule
def acts(case: Case) -> None:
    """The method changes the training of the small model.

    Where it does not, the other rules say nothing. Pass options with which it acts in four epochs of two steps.
    """
    training, bare = case.training().run(), case.bare().run()
    require_finite(training, "after four epochs")
    if not different(training.weights(), bare.weights()):
        raise RuleError(
            "other weights than those of the inner optimizer, after four epochs of two steps",
            "the same weights, bit for bit",
            "give options with which it acts: `check_method(..., options={...})`, `modbalance check --option`, or "
            "`option(..., short=value)`",
        )


@rule
def window(case: Case) -> None:
    """Outside of its window the method is bitwise the inner optimizer.

    Users compare windows; a method that goes on to act, or to draw numbers, makes two windows one.
    """
    for epoch, method in _outside(case):
        training, bare = case.training(method=method), case.bare()
        training.optimizer.epoch = epoch
        data = bare.data(STEPS)
        require_same(
            training.run(data).weights(),
            bare.run(data).weights(),
            f"in epoch {epoch}, outside of the window, the weights of the inner optimizer",
            "let `is_active(epoch)` be false outside of the window, or return neutral values there",
        )


def _outside(case: Case) -> list[tuple[int, Any]]:
    """Return epochs outside of the window, each with a method."""
    if issubclass(case.method, WindowedMethod):
        return [(epoch, case.build(start_epoch=1, end_epoch=1)) for epoch in (0, 2)]
    method = case.build()
    return [(epoch, method) for epoch in range(100) if not method.is_active(epoch)][:1]


@rule
def dry_run(case: Case) -> None:
    """`dry_run=True` changes nothing: weights are bitwise those of the inner optimizer.

    A dry run measures a training as it would be without the method.
    """
    training, bare = case.training(dry_run=True).run(), case.bare().run()
    require_same(
        training.weights(),
        bare.weights(),
        "the weights of the inner optimizer",
        "change weights, gradients of other passes and the optimizer only where `run.dry_run` is false",
    )


@rule
def removal(case: Case) -> None:
    """`opt.remove()` leaves a plain optimizer and a model without hooks.

    Users remove a method before they export a model or go on by other means.
    """
    training, bare = case.training(), case.bare()
    before = _hooks(bare.model)
    data = training.data()
    training.run(data, stop=3)
    training.optimizer.remove()
    if left := _hooks(training.model) - before:
        raise RuleError(
            "no hooks on the model after `opt.remove()`",
            f"{left} hooks",
            "register hooks on modules of your own alone; use `modbalance_features` and `modbalance_inputs`",
        )
    bare.model.load_state_dict(training.model.state_dict())
    # A copy: torch takes over the tensors themselves.
    bare.inner.load_state_dict(copy.deepcopy(training.inner.state_dict()))
    require_same(
        training.run(data, start=3).weights(),
        bare.run(data, start=3).weights(),
        "from `opt.remove()` on, the weights of the inner optimizer",
        "leave nothing behind on model, parameters and inner optimizer",
    )


def _hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    parameters = model.parameters()
    return modules + sum(len(getattr(p, "_backward_hooks", None) or ()) for p in parameters)


@rule
def random_numbers(case: Case) -> None:
    """The global random states of torch and Python are those of a training without the method.

    Augmentation, dropout and sampling must not depend on the method, or seeds cannot be compared. Draw from
    `step.generator(device, seed)`, and run further passes in `modbalance.auxiliary.isolated_rng`.
    """
    if names := different(_states(case.training), _states(case.bare)):
        raise RuleError(
            "the random states of a training of the inner optimizer",
            f"other states of {', '.join(names)}",
            "draw from `step.generator(device, seed)`; run further passes in `modbalance.auxiliary.isolated_rng`",
        )


def _states(build: Callable[..., Training]) -> dict[str, Any]:
    """Return the states after a training with dropout; the caller's states are put back."""
    python = random.getstate()
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        random.seed(1)
        build(prepare=_with_dropout).run()
        states = {"torch": torch.get_rng_state(), "Python": random.getstate()}
    random.setstate(python)
    return states


def _with_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5


@rule
def evaluation(case: Case) -> None:
    """Evaluations between steps leave no trace, and the criterion returns the user's loss there.

    A validation set must not enter training, however often it is looked at.
    """
    training, other = case.training(), case.training()
    data = training.data()
    for index in range(len(data)):
        other.run(data, start=index, stop=index + 1)
        _evaluate(case, other)
        training.run(data, start=index, stop=index + 1)
    fix = "act in the hooks of training; `acts_in_eval = True` where the logits are replaced in evaluation too"
    require_same(other.weights(), training.weights(), "the weights of a training without evaluations", fix)
    require_same(other.saved(), training.saved(), "the state of a training without evaluations", fix)


def _evaluate(case: Case, training: Training) -> None:
    training.model.eval()
    inputs, target = training.data(1)[0]
    with torch.no_grad():
        logits = training.model(*inputs)
        loss, own = training.criterion(logits, target), nn.functional.cross_entropy(logits, target)
    training.model.train()
    if not case.method.acts_in_eval and not torch.equal(loss, own):
        raise RuleError(
            f"the user's loss in evaluation, {own.item():.4f}",
            f"{loss.item():.4f}",
            "leave evaluation alone, or set `acts_in_eval = True`",
        )


@rule
def batches_unchanged(case: Case) -> None:
    """Inputs and targets of the user are not edited in place.

    A cached batch would be another one in the next epoch.
    """
    training = case.training()
    data = training.data()
    training.run(data)
    if any(
        not torch.equal(one, other)
        for (inputs, target), (fresh, label) in zip(data, training.data(), strict=True)
        for one, other in zip((*inputs, target), (*fresh, label), strict=True)
    ):
        raise RuleError(
            "batches as they were given", "tensors that were edited", "return new tensors from `modbalance_inputs`"
        )
