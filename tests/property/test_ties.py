"""Decisions on numbers that are equal on paper do not depend on their last digit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer
from support.training import assert_same, balanced, batches, multimodal, sgd, train

pytestmark = pytest.mark.slow


SETTINGS = settings(deadline=None, derandomize=True, max_examples=60, phases=[Phase.generate, Phase.shrink])
DTYPES = st.sampled_from([torch.float32, torch.float64])
DIGITS = st.lists(st.integers(-1, 1), min_size=8, max_size=8)


def nudged(value: float, digit: int, dtype: torch.dtype) -> Tensor:
    """Return the number in a precision, or its neighbour below or above, 0-dim."""
    exact = torch.tensor(value, dtype=dtype)
    return torch.nextafter(exact, exact + digit)


def modulated(scores: list[Tensor], method: str = "ogm", **options: Any) -> list[float]:
    """Return the gradient of each modality, 1 before, after one step with these scores."""
    names, dtype = [str(u) for u in range(len(scores))], scores[0].dtype
    parameters = [nn.Parameter(torch.zeros(2, 2, dtype=dtype)) for _ in scores]
    groups = [{"params": [p], "modality": name} for name, p in zip(names, parameters, strict=True)]
    optimizer = BalancedOptimizer(SGD(groups, lr=0.1), method, param_filter="all", **options)
    criterion = optimizer.criterion(lambda logits, target: logits.sum(), score=lambda logits, target: (logits, None))
    unimodal = {name: score.reshape(1) for name, score in zip(names, scores, strict=True)}
    logits = torch.stack([p.sum() for p in parameters]).sum().reshape(1)
    criterion(logits, torch.tensor([0]), unimodal_logits=unimodal).backward()
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.modulate()
    return [p.grad[0, 0].item() for p in parameters if p.grad is not None]


@SETTINGS
@given(
    score=st.floats(2**-20, 2**20, width=32),
    digits=DIGITS,
    modalities=st.integers(2, 8),
    dtype=DTYPES,
    ratio=st.sampled_from(["mean_others", "min"]),
    shift=st.sampled_from([0, 1]),
)
def test_equal_scores_are_a_tie_whatever_their_last_digit(
    score: float, digits: list[int], modalities: int, dtype: torch.dtype, ratio: str, shift: int
) -> None:
    scores = [nudged(score, digit, dtype) for digit in digits[:modalities]]
    first, *others = modulated(scores, ratio=ratio, ratio_shift=shift)

    assert first == pytest.approx(1 - math.tanh(0.8 * (1 - shift)), abs=1e-5)
    assert first <= 1
    assert others == [1.0] * (modalities - 1)
    assert modulated(scores, ratio=ratio, ratio_shift=shift, tie="none") == [1.0] * modalities


@SETTINGS
@given(digits=DIGITS, modalities=st.integers(2, 8), dtype=DTYPES, ahead=st.integers(0, 7))
def test_a_modality_clearly_ahead_is_suppressed_whatever_the_last_digits_of_the_others(
    digits: list[int], modalities: int, dtype: torch.dtype, ahead: int
) -> None:
    scores = [nudged(0.7, digit, dtype) for digit in digits[:modalities]]
    ahead %= modalities
    scores[ahead] = scores[ahead] * 1.001
    k = modulated(scores)

    assert [u for u in range(modalities) if k[u] != 1] == [ahead]


@SETTINGS
@given(score=st.floats(0.25, 4, width=32), digits=DIGITS, modalities=st.integers(2, 8), dtype=DTYPES)
def test_noise_for_suppressed_modalities_alone_spares_a_tie(
    score: float, digits: list[int], modalities: int, dtype: torch.dtype
) -> None:
    """With ``ratio_shift=1`` the coefficient of a tie is 1 but for rounding."""
    scores = [nudged(score, digit, dtype) for digit in digits[:modalities]]
    options: dict[str, Any] = {"ratio_shift": 1, "noise_on": "suppressed", "noise_scale": 1e12}

    assert modulated(scores, "ogm_ge", **options) == pytest.approx([1.0] * modalities, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("largest", "digit"), [(1.0, -1), (1.0, 0), (1.0, 1), (1.0001, 0)])
def test_an_entry_that_equals_the_trigger_of_agm_clips_nothing(dtype: torch.dtype, largest: float, digit: int) -> None:
    model = multimodal(dtype=dtype)
    optimizer = balanced(model, "agm", clip_trigger=1.0, clip_norm=0.01)
    inputs, target = batches(model, 1, dtype=dtype)[0]
    optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target).backward()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    head = model.get_parameter("fusion.fc_out.weight")
    assert head.grad is not None
    head.grad[0, 0] = nudged(largest, digit, dtype)

    optimizer.modulate()

    assert (head.grad[0, 1].item() < 0.5) == (largest > 1)


@SETTINGS
@given(loss=st.floats(2**-10, 2**10, width=32), digits=DIGITS)
def test_a_loss_that_stays_is_no_improvement_for_mses(loss: float, digits: list[int]) -> None:
    optimizer = balanced(multimodal(), "mses", patience=3, rewind="none")
    for digit in digits[:4]:
        a = nudged(loss, digit, torch.float32).item()
        optimizer.end_epoch(metrics={"loss": {"a": a, "b": loss}})
        assert not optimizer.should_stop
    optimizer.end_epoch(metrics={"loss": {"a": loss, "b": loss}})

    assert optimizer.should_stop


@pytest.mark.parametrize("numbers", [(0.1, 0.2, -0.3), (0.5, 0.25, -0.75), (0.0, 0.0, 0.0)])
def test_numbers_that_cancel_say_nothing_to_mslr(numbers: tuple[float, ...]) -> None:
    model = multimodal()
    optimizer = balanced(model, "mslr", memory=3)
    for number in (*numbers, 0.4):
        optimizer.end_epoch(metrics={"accuracy": {"a": number, "b": 1.0}})
    train(model, optimizer, batches(model, 1))

    assert optimizer.metrics()["mslr/nonfinite/a"] == 1
    assert optimizer.metrics()["mslr/coefficient/a"] == 1


@SETTINGS
@given(accuracy=st.floats(0.01, 1), memory=st.integers(1, 8))
def test_an_accuracy_that_stays_leaves_the_learning_rate_bitwise_alone(accuracy: float, memory: int) -> None:
    model, plain = multimodal(dtype=torch.float64), multimodal(dtype=torch.float64)
    for each in (model, plain):  # weights so small that a trace of the old ones would show
        each.get_parameter("encoders.a.0.weight").data.zero_()
    optimizer = balanced(model, "mslr", memory=memory, mode="lr")
    for _ in range(memory + 1):
        optimizer.end_epoch(metrics={"accuracy": {"a": accuracy, "b": accuracy}})
    data = batches(model, 2, dtype=torch.float64)

    assert_same(train(model, optimizer, data), train(plain, sgd(plain), data))
