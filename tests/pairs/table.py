"""The table of pairs of methods: what each cell trains, and what it is compared to."""

from __future__ import annotations

import functools
from itertools import permutations

import attrs
import torch

from modbalance import BalancedOptimizer, ModbalanceError
from modbalance._plugins import load_method
from stacks.training import Weights, distance, methods, options_of, run
from support.models import Multimodal
from support.training import head_for, multimodal, sgd, weights

SMALLEST = 1e-3
"""Smallest difference of a weight by which a method counts as acting."""


@attrs.frozen
class Cell:
    """Result of two methods together: the smaller of the differences to each of them alone, or a refusal.

    Attributes:
        difference: Largest difference of a weight to the training with one of the methods alone, of that one from which
            it is smaller; ``None``: refused.
        note: The message of the refusal.
    """

    difference: float | None
    note: str = ""


def names() -> list[str]:
    """Return the built-in methods that are installed."""
    return [name for name in methods() if name != "none"]


def pairs() -> list[tuple[str, str]]:
    """Return all ordered pairs of methods."""
    return [*permutations(names(), 2)]


def model_for(*together: str, beside: str | None = None) -> Multimodal:
    """Return the small model, with one head for both modalities where one of the methods needs that."""
    heads = [head_for(name) for name in (*together, beside)]
    return multimodal(head="shared" if "shared" in heads else "concat")


def trained(*together: str, beside: str | None = None) -> Weights:
    """Return the weights after 15 steps with some methods, in this order; the seed is always the same.

    Args:
        together: The methods.
        beside: A method for which the model should be suited, too.
    """
    torch.manual_seed(0)
    model = model_for(*together, beside=beside)
    chosen = [load_method(name)(**options_of(name)) for name in together]
    run(model, BalancedOptimizer(sgd(model), chosen, model=model, modalities=model.paths, fusion="fusion"))
    return weights(model)


@functools.cache
def alone(name: str, beside: str | None = None) -> Weights:
    """Return the weights after a training with one method, with a model that suits another one, too."""
    return trained(name, beside=beside if beside and head_for(beside) == "shared" else None)


def cell(first: str, second: str) -> Cell:
    """Train with two methods, and compare."""
    try:
        both = trained(first, second)
    except ModbalanceError as error:
        return Cell(None, str(error))
    return Cell(min(distance(both, alone(*each)) for each in ((first, second), (second, first))))
