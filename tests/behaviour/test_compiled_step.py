"""A compiled optimizer step, and a criterion in compiled code: every method acts, and nothing is compiled again."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim import Optimizer

from modbalance import BalancedOptimizer
from support.methods import AUDIO_VISUAL, METHODS, acting
from support.training import assert_close, audio_visual_for, balanced, batches, sgd, train

# Dynamo itself meets these, in torch's optimizers and at the end of a graph.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
LOSS = nn.CrossEntropyLoss()
STEPS = 5


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def wrapped(model: nn.Module, method: str) -> BalancedOptimizer:
    torch.manual_seed(0)
    return balanced(model, method, **acting(method, AUDIO_VISUAL))


def graphs_after_each_step(optimizer: Optimizer, model: nn.Module, backend: str) -> list[int]:
    """Train with a compiled step, and return how many graphs were compiled so far, after each."""
    step: Callable[[], Any] = torch.compile(lambda: optimizer.step(), backend=backend)
    criterion = optimizer.criterion(LOSS) if isinstance(optimizer, BalancedOptimizer) else LOSS
    seen = []
    for inputs, target in batches(model, STEPS):
        optimizer.zero_grad()
        criterion(model(*inputs), target).backward()
        step()
        seen.append(counters["stats"]["unique_graphs"])
    return seen


def check(method: str, backend: str) -> None:
    model, eager = audio_visual_for(method), audio_visual_for(method)
    optimizer = wrapped(model, method)
    graphs = graphs_after_each_step(optimizer, model, backend)
    assert_close(model, train(eager, wrapped(eager, method), batches(eager, STEPS)), atol=1e-6)
    assert optimizer._lifecycle.training.steps == (0 if method == "none" else STEPS)
    # The second graph is that of a step with momentum; the inner optimizer alone has both, too.
    assert graphs == graphs_of_the_inner_optimizer(backend) == [1, 2, 2, 2, 2]


@functools.cache
def graphs_of_the_inner_optimizer(backend: str) -> list[int]:
    torch._dynamo.reset()
    counters.clear()
    return graphs_after_each_step(sgd(model := audio_visual_for("none")), model, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_step_acts_and_is_not_compiled_again(method: str, backend: str) -> None:
    check(method, backend)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_step_compiled_by_inductor_acts_and_is_not_compiled_again(method: str) -> None:
    check(method, "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_criterion_in_compiled_code_lets_the_method_observe(method: str) -> None:
    model, eager = audio_visual_for(method), audio_visual_for(method)
    optimizer = wrapped(model, method)
    criterion = optimizer.criterion(LOSS)

    @torch.compile(backend="eager")
    def loss_of(inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        loss: Tensor = criterion(model(*inputs), target)
        return loss

    for inputs, target in batches(model, 3):
        optimizer.zero_grad()
        loss_of(inputs, target).backward()
        optimizer.step()
    assert_close(model, train(eager, wrapped(eager, method), batches(eager, 3)), atol=1e-6)
    assert optimizer._lifecycle.training.steps == (0 if method == "none" else 3)


@pytest.mark.slow
def test_the_library_does_not_load_the_compiler() -> None:
    code = "import sys, modbalance; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
