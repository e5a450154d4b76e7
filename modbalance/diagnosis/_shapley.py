"""Shapley values of modalities: exact, or estimated from permutations.

The value v(S) of a coalition S is the measured quantity when only its modalities are present. Contributions of
modalities by Shapley values: Hu, Li and Zhou, SHAPE, arXiv 2205.00302.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

Coalition = tuple[str, ...]
MOST_EXACT = 4
"""Largest number of modalities with exact values: 16 coalitions."""


def subsets(modalities: Sequence[str]) -> Iterator[Coalition]:
    """Yield all 2^M coalitions, the empty one first."""
    for size in range(len(modalities) + 1):
        yield from combinations(modalities, size)


def orders_of(modalities: Sequence[str], count: int, seed: int) -> list[Coalition]:
    """Return ``count`` random permutations of the modalities; the random state of Python stays as it is."""
    source = random.Random(seed)
    return [tuple(source.sample(list(modalities), len(modalities))) for _ in range(count)]


def coalitions_of(modalities: Sequence[str], orders: Sequence[Coalition]) -> list[Coalition]:
    """Return the coalitions that Shapley values need, each once and in fusion order; no orders: all of them."""
    if not orders:
        return [*subsets(modalities)]
    found = {
        tuple(name for name in modalities if name in order[:size]) for order in orders for size in range(len(order) + 1)
    }
    return sorted(found, key=lambda S: (len(S), [modalities.index(name) for name in S]))


def exact(values: Mapping[Coalition, Tensor], modalities: Sequence[str]) -> dict[str, Tensor]:
    """Return phi_i = sum over S without i of |S|! (M - |S| - 1)! / M! (v(S + i) - v(S)), element by element.

    Args:
        values: By coalition, in fusion order, any shape.
        modalities: Names, in fusion order.
    """
    M, phi = len(modalities), {}
    for i in modalities:
        rest = [name for name in modalities if name != i]
        terms = [
            math.factorial(len(S))
            * math.factorial(M - len(S) - 1)
            / math.factorial(M)
            * _gain(values, modalities, S, i)
            for S in subsets(rest)
        ]
        phi[i] = torch.stack(terms).sum(0)
    return phi


def sampled(
    values: Mapping[Coalition, Tensor], modalities: Sequence[str], orders: Sequence[Coalition]
) -> dict[str, Tensor]:
    """Return the gain of each modality over those before it, by permutation: (P, ...); their mean estimates phi."""
    return {
        i: torch.stack([_gain(values, modalities, order[: order.index(i)], i) for order in orders]) for i in modalities
    }


def _gain(values: Mapping[Coalition, Tensor], modalities: Sequence[str], S: Sequence[str], i: str) -> Tensor:
    def ordered(members: Sequence[str]) -> Coalition:
        return tuple(name for name in modalities if name in members)

    return values[ordered([*S, i])] - values[ordered(S)]


def standard_error(samples: Tensor) -> float:
    """Return the standard error of the mean of independent samples (N,), N >= 2; else NaN."""
    return float(samples.std() / math.sqrt(len(samples))) if len(samples) > 1 else math.nan
