"""Tests of the example plugin: discovery, the rules of all methods, and its formula by numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from modbalance_example import InverseScore
from torch import nn

from modbalance import BalancedOptimizer, list_methods
from modbalance.testing import Check, parametrize_with_checks


def probabilities(*of_class_0: float) -> torch.Tensor:
    """Return logits, (B, 2), whose softmax has these probabilities of class 0."""
    p = torch.tensor(of_class_0)
    return torch.stack([p, 1 - p], 1).log()


def step(gamma: float, **logits: torch.Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Take one step with given unimodal logits and gradients of 1; return coefficients and gradients by modality."""
    weights = {name: nn.Parameter(torch.zeros(1)) for name in logits}
    groups = [{"params": [weight], "modality": name} for name, weight in weights.items()]
    optimizer = BalancedOptimizer(torch.optim.SGD(groups, lr=1.0), "inverse_score", gamma=gamma)
    criterion = optimizer.criterion(lambda output, target: output.sum())
    output = torch.stack(list(weights.values())).sum() + torch.zeros(2, 2)

    criterion(output / output.numel(), torch.zeros(2, dtype=torch.long), unimodal_logits=logits).backward()
    optimizer.step()

    coefficients = {name: optimizer.metrics()[f"inverse_score/coefficient/{name}"] for name in logits}
    return coefficients, {name: -weight.item() for name, weight in weights.items()}


def test_is_found() -> None:
    """An entry point makes it available by name."""
    found = {each.name: each for each in list_methods()}

    assert found["inverse_score"].method is InverseScore
    assert found["inverse_score"].distribution == "modbalance-example"


@parametrize_with_checks([InverseScore, (InverseScore, {"gamma": 0.5})])
def test_rules(check: Check) -> None:
    """It keeps every rule that a method must keep."""
    check()


def test_formula() -> None:
    """The formula, by numbers worked by hand."""
    # Mean scores 0.8 and 0.2: 0.2 / 0.8 = 0.25 for a, and 0.8 / 0.2 = 4 is clipped to 1 for b.
    logits = {"a": probabilities(0.9, 0.7), "b": probabilities(0.1, 0.3)}

    assert step(1, **logits)[0] == pytest.approx({"a": 0.25, "b": 1.0})
    assert step(0.5, **logits)[0] == pytest.approx({"a": 0.5, "b": 1.0})
    assert step(0, **logits)[0] == {"a": 1.0, "b": 1.0}


def test_three_modalities() -> None:
    """Each modality is compared with the mean of the others."""
    # Scores 0.8, 0.4, 0.2: 0.3 / 0.8 = 0.375, 0.5 / 0.4 and 0.6 / 0.2 are clipped.
    logits = {name: probabilities(p, p) for name, p in {"a": 0.8, "b": 0.4, "c": 0.2}.items()}

    coefficients, gradients = step(1, **logits)

    assert coefficients == pytest.approx({"a": 0.375, "b": 1.0, "c": 1.0})
    assert gradients == pytest.approx(coefficients)


def test_option_out_of_range() -> None:
    """A bad option is refused when the method is built."""
    with pytest.raises(ValueError, match="`gamma` of method `inverse_score` should be a finite number >= 0"):
        InverseScore(gamma=-1)
