"""Rules on numbers: modalities, batches, precision."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from modbalance.errors import ConfigError
from modbalance.testing._case import NAMES, Case, Training, require_finite, require_same
from modbalance.testing._report import RuleError
from modbalance.testing._rules import rule

ROUNDING = 1e-9
"""Largest difference between weights in double precision that are equal on paper, after eight steps."""


@rule
def number_of_modalities(case: Case) -> None:
    """The method trains with one to four modalities, or refuses fewer than `min_modalities` by a ConfigError.

    Formulas are often written for two; users have three.
    """
    for count in range(1, len(NAMES) + 1):
        names = NAMES[:count]
        if count >= case.method.min_modalities:
            require_finite(case.training(names).run(), f"with {count} modalities")
            continue
        try:
            case.training(names)
        except ConfigError:
            continue
        raise RuleError(
            f"a ConfigError for {count} modalities, with min_modalities = {case.method.min_modalities}",
            "that they were accepted",
            "leave the check to the core",
        )


@rule
def renaming(case: Case) -> None:
    """Names of modalities do not matter: under other names, weights are bitwise the same.

    No modality is special because of its name or the place of its name in the alphabet.
    """
    names = case.smallest()
    others = tuple(f"{len(names) - index}_{name}" for index, name in enumerate(names))
    one, two = case.training(names).run().weights(), case.training(others).run().weights()
    require_same(
        dict(enumerate_values(two)),
        dict(enumerate_values(one)),
        f"with the names {list(others)}, the weights of a training with {list(names)}",
        "take the order of modalities from `run.modalities`; do not sort names, nor compare them with words",
    )


def enumerate_values(weights: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Return values by their number, as models under other names have them in the same order."""
    return [(f"parameter {index}", value) for index, value in enumerate(weights.values())]


@rule
def order_of_modalities(case: Case) -> None:
    """The order of modalities does not matter: the reordered training is the same function, to rounding.

    A comparison with the first modality alone, or with the next one, holds for two and fails for three.
    """
    names = NAMES[: max(3, case.method.min_modalities)]
    expected = case.training(names, dtype=torch.float64).run().weights()
    for order in itertools.islice(itertools.permutations(range(len(names))), 1, 6, 2):
        other = case.training(names, dtype=torch.float64, order=order).run()
        other.model.reordered([order.index(index) for index in range(len(names))])
        require_same(
            other.weights(),
            expected,
            f"with the modalities in the order {order}, the weights of the first order, to {ROUNDING}",
            "treat modalities alike: sums and means over all, not the first one or a neighbour",
            ROUNDING,
        )


@rule
def accumulation(case: Case) -> None:
    """Micro-batches, k to a step, give what one batch k times as large gives, to rounding.

    Memory decides on the size of a batch, and should not decide on the method. Return sums from `modbalance_observe`:
    the core adds them over the micro-batches of a step.
    """
    k, whole, parts = 3, case.training(dtype=torch.float64), case.training(dtype=torch.float64)
    data = whole.data()
    whole.run(data)
    for index, (inputs, target) in enumerate(data):
        parts.optimizer.zero_grad()
        for *xs, y in zip(*(x.chunk(k) for x in inputs), target.chunk(k), strict=True):
            parts.backward((tuple(xs), y), 1 / k)
        parts.optimizer.step()
        if index % 2:
            parts.end_epoch(data[index - 1 : index + 1])
    words = f"with {k} micro-batches a step, the {{}} of whole batches, to {ROUNDING}"
    fix = "return sums and counts from `modbalance_observe`, and divide in `modbalance_coefficients`"
    require_same(parts.weights(), whole.weights(), words.format("weights"), fix, ROUNDING)
    require_same(parts.saved(), whole.saved(), words.format("state"), fix, ROUNDING)


@rule
def batch_of_one(case: Case) -> None:
    """A batch of one sample is a batch.

    The last batch of an epoch may hold one sample; a variance over it is not a number.
    """
    training = case.training()
    data = training.data()
    for size in (6, 1, 6):
        training.step(training.data(1, size)[0])
    training.end_epoch(data[:2])
    require_finite(training, "after a batch of one sample")


@rule
def empty_batch(case: Case) -> None:
    """A batch without samples changes nothing but what the inner optimizer does.

    Filters, and ranks with fewer samples, leave empty batches; a mean over none is not a number.
    """
    training = case.training(loss_fn=nn.CrossEntropyLoss(reduction="sum"))
    for size in (6, 0, 6):
        training.step(training.data(1, size)[0])
    require_finite(training, "after a batch without samples")


@rule
def double_precision(case: Case) -> None:
    """A model in double precision trains, and stays in it.

    Constants in single precision fail beside it, or lose what it is taken for.
    """
    training = case.training(dtype=torch.float64).run()
    require_finite(training, "in double precision")
    _require_type(training, torch.float64)


@rule
def autocast(case: Case) -> None:
    """A forward under autocast in bfloat16 trains, its criterion inside or outside, and parameters stay single.

    Logits and features arrive in half precision; sums over a batch must not stay there.
    """
    training = case.training()
    data = training.data()
    for index, (inputs, target) in enumerate(data):
        training.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = training.model(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=index % 4 < 2):
            loss = training.criterion(logits, target)
        loss.backward()
        training.optimizer.step()
        if index % 2:
            training.end_epoch(data[index - 1 : index + 1])
    require_finite(training, "under autocast")
    _require_type(training, torch.float32)


def _require_type(training: Training, dtype: torch.dtype) -> None:
    if wrong := {name: value.dtype for name, value in training.weights().items() if value.dtype != dtype}:
        raise RuleError(f"weights of type {dtype}", f"{wrong}", "convert to the type of the tensor that is edited")
