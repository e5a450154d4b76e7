"""The table of pairs of methods: what each cell trains, and what it is compared to."""

from __future__ import annotations

import functools
from itertools import permutations

import attrs
import torch

from modbalance import BalancedOptimizer, ModbalanceError
from modbalance._plugins import load_method
from stacks.training import Weights, distance, methods, options_of, run
from support.training import multimodal, sgd, weights

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


def trained(*together: str) -> Weights:
    """Return the weights after 15 steps with some methods, in this order; the seed is always the same."""
    torch.manual_seed(0)
    model = multimodal()
    chosen = [load_method(name)(**options_of(name)) for name in together]
    run(model, BalancedOptimizer(sgd(model), chosen, model=model, modalities=model.paths, fusion="fusion"))
    return weights(model)


alone = functools.cache(trained)


def cell(first: str, second: str) -> Cell:
    """Train with two methods, and compare."""
    try:
        both = trained(first, second)
    except ModbalanceError as error:
        return Cell(None, str(error))
    return Cell(min(distance(both, alone(name)) for name in (first, second)))
