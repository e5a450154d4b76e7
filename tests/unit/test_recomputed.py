"""Computations that run again in the backward, after that of all else."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from modbalance._model.recomputed import recomputed


def test_values_and_gradients_are_those_of_the_plain_computation() -> None:
    w, x, z = (torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def run(y: Tensor) -> Sequence[Tensor]:
        return (y @ w).tanh(), (y + w).sin()

    found, expected = (
        torch.autograd.grad(torch.stack([*make(x.exp() * z)]).square().sum(), [w, x, z])
        for make in (lambda y: recomputed(run, [w], [y]), run)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_random_numbers_are_drawn_again_and_the_stream_goes_on() -> None:
    x = torch.ones(1000, requires_grad=True)
    drawn: list[Tensor] = []

    def run() -> Sequence[Tensor]:
        drawn.append(nn.functional.dropout(x, 0.5))
        return (drawn[-1].clone(),)

    (out,) = recomputed(run, [x], [])
    torch.rand(5)
    before = torch.random.get_rng_state()
    out.sum().backward()
    assert torch.equal(*drawn)
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_runs_after_the_backward_of_what_came_before() -> None:
    x, order = torch.ones(2, requires_grad=True), []

    def note(name: str, tensor: Tensor) -> Tensor:
        tensor.register_hook(lambda gradient: order.append(name))
        return tensor

    first = note("first", x * 2)
    second = note("second", first * 3)
    third = note("third", second * 5)

    def run() -> Sequence[Tensor]:
        order.append("run")
        return (x * 7,)

    (out,) = recomputed(run, [x], [])
    (third + out).sum().backward()
    assert order == ["run", "third", "second", "first", "run"]
    assert torch.equal(x.grad, torch.full((2,), 37.0))  # type: ignore[arg-type]


def test_each_parameter_gets_one_gradient() -> None:
    x, calls = torch.ones(2, requires_grad=True), []
    x.register_post_accumulate_grad_hook(lambda parameter: calls.append(1))
    (out,) = recomputed(lambda: (x * 7,), [x], [])
    (x * 2 + out).sum().backward()
    assert len(calls) == 1


def test_outputs_without_gradient_and_constant_ones() -> None:
    x, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
    used, _, constant = recomputed(lambda y: (x * 2, x * 3, y * 2), [x, frozen], [frozen])
    (used + constant).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 2.0))  # type: ignore[arg-type]
    assert not recomputed(lambda y: (y * 2,), [frozen], [frozen])[0].requires_grad
    with torch.no_grad():
        assert not recomputed(lambda: (x * 2,), [x], [])[0].requires_grad


def test_a_parameter_that_changed_is_an_error() -> None:
    x = torch.ones(2, requires_grad=True)
    (out,) = recomputed(lambda: (x * x,), [x], [])
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_graph_that_is_kept_runs_again() -> None:
    x = torch.ones(2, requires_grad=True)
    (out,) = recomputed(lambda: (x * 3,), [x], [])
    out.sum().backward(retain_graph=True)
    out.sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 6.0))  # type: ignore[arg-type]


def test_nothing_is_kept() -> None:
    x, seen = torch.ones(2, requires_grad=True), []

    def run() -> Sequence[Tensor]:
        middle = x * 3
        seen.append(weakref.ref(middle))
        return (middle * middle,)

    gc.disable()
    try:
        (out,) = recomputed(run, [x], [])
        assert seen[0]() is None
        out.sum().backward()
        assert seen[1]() is None
    finally:
        gc.enable()
