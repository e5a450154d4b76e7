"""The clip in a step: whose it is, and who shares it."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from modbalance import BalancedOptimizer, ModbalanceWarning
from support.models import Multimodal
from support.training import balanced, batches, multimodal, train


def alternate(optimizers: list[BalancedOptimizer], model: Multimodal, steps: int = 3) -> None:
    criteria = [optimizer.criterion(nn.CrossEntropyLoss()) for optimizer in optimizers]
    for inputs, target in batches(model, steps):
        logits = model(*inputs)
        losses = [criterion(logits, target) for criterion in criteria]
        losses[0].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_preset_clips_of_two_optimizers_that_step_in_turn_are_named_once() -> None:
    model = multimodal()
    optimizers = [balanced(model, method) for method in ("cggm", "dgl")]
    with pytest.warns(ModbalanceWarning, match=r"each clips .*`BalancedOptimizer\(\[\.\.\.\], method=\[") as given:
        alternate(optimizers, model)

    assert len(given) == len(optimizers)


@pytest.mark.parametrize("clips", [(5.0, 5.0), (None, 5.0), (5.0, None)])
def test_clips_of_the_user_are_theirs(clips: tuple[float | None, float | None]) -> None:
    model = multimodal()
    pairs = zip(("cggm", "dgl"), clips, strict=True)
    alternate([balanced(model, method, clip_grad_norm=clip) for method, clip in pairs], model)


def test_an_optimizer_in_the_place_of_another_and_models_of_their_own_are_no_case() -> None:
    model, other = multimodal(), multimodal()
    first = balanced(model, "cggm")
    train(model, first, batches(model, 2))
    train(model, balanced(model, "cggm"), batches(model, 2))
    apart, second = balanced(other, "cggm"), balanced(multimodal(), "cggm")
    for _ in range(2):
        train(other, apart, batches(other, 1))
        train(second._lifecycle.run.model, second, batches(other, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("own", "norm"), [(None, None), (5.0, 5.0)])
def test_remove_leaves_the_own_clip(own: float | None, norm: float | None) -> None:
    optimizer = balanced(multimodal(), "cggm", clip_grad_norm=own)
    twin = copy.deepcopy(optimizer)
    optimizer.remove()

    assert optimizer._clip_grad_norm == norm
    assert twin._clip_grad_norm == (own or 0.8)
