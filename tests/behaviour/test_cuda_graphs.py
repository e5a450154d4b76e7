"""Steps in CUDA graphs: state keeps its place in memory, and what cannot be repeated is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer, CaptureError, Method, Step, hookimpl, state
from support.methods import AUDIO_VISUAL, METHODS, acting
from support.models import ConcatFusion
from support.training import audio_visual, audio_visual_for, balanced, batches, sgd, train

CAPTURED = [name for name in METHODS if name not in ("agm", "ogm_ge", "opm")]
KEEPS_NOTHING = ("none", "dgl", "lfm")


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in state, in order: in containers, in modules and in the state of optimizers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif isinstance(value, torch.optim.Optimizer):
        yield from tensors(dict(value.state))
    elif attrs.has(type(value)) and type(value).__module__.startswith("modbalance"):
        yield from tensors([getattr(value, field.name) for field in attrs.fields(type(value))])


def addresses(optimizer: BalancedOptimizer) -> list[int]:
    lifecycle = optimizer._lifecycle
    kept = [
        [getattr(method, field.name) for field in attrs.fields(type(method)) if not field.name.startswith("_run")]
        for method in lifecycle.methods
    ]
    return [tensor.data_ptr() for tensor in tensors([*kept, lifecycle.training.telemetry._counters])]


def moved_state(method: Any, **options: Any) -> tuple[list[int], list[int]]:
    """Return where state lies after three steps, and after three more."""
    model = audio_visual_for(method)
    torch.manual_seed(0)
    optimizer = balanced(model, method, **options)
    data = batches(model, 6)
    train(model, optimizer, data[:3])
    before = addresses(optimizer)
    train(model, optimizer, data[3:])
    return before, addresses(optimizer)


@pytest.mark.parametrize("method", METHODS)
def test_state_keeps_its_place_from_step_to_step(method: str) -> None:
    options = {"projection": "rls"} if method == "mla" else acting(method, AUDIO_VISUAL)
    before, after = moved_state(method, **options)
    assert before == after
    assert bool(before) is (method not in KEEPS_NOTHING)


def test_state_that_is_bound_anew_is_noticed() -> None:
    @attrs.define(eq=False, kw_only=True)
    class Rebinding(Method):
        name: ClassVar[str] = "rebinding"
        total: Tensor | None = state(None)

        @hookimpl
        def modbalance_after_step(self, step: Step) -> None:
            self.total = torch.ones(3) if self.total is None else self.total + 1

    before, after = moved_state(Rebinding())
    assert before != after


# What a graph cannot hold


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def begin() -> None:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    return begin


class DroppingFusion(ConcatFusion):
    def forward(self, *features: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(*features), 0.5, self.training)


@pytest.mark.parametrize(
    ("method", "options", "fusion", "reason"),
    [
        ("ogm_ge", {}, ConcatFusion, "number of the step"),
        ("opm", {"start_epoch": 0}, ConcatFusion, "number of the step"),
        ("agm", {}, ConcatFusion, "whose state is put back"),
        ("cggm", {"probes": "transformer"}, ConcatFusion, "number of the step"),
        ("dgl", {}, DroppingFusion, "whose state is put back"),
    ],
)
def test_a_step_that_a_graph_would_repeat_wrongly_is_refused(
    method: str, options: dict[str, Any], fusion: Any, reason: str, capture: Callable[[], None]
) -> None:
    model = audio_visual(fusion)
    optimizer = balanced(model, method, **options)
    data = batches(model, 4)
    train(model, optimizer, data[:3])
    capture()
    with pytest.raises(CaptureError, match=f"{reason}.*without a graph"):
        train(model, optimizer, data[3:])


@pytest.mark.parametrize("method", CAPTURED)
def test_other_steps_may_be_captured(method: str, capture: Callable[[], None]) -> None:
    model = audio_visual_for(method)
    optimizer = balanced(model, method, sgd(model), **acting(method, AUDIO_VISUAL))
    data = batches(model, 4)
    train(model, optimizer, data[:3])
    capture()
    train(model, optimizer, data[3:])


@pytest.mark.cuda
@pytest.mark.parametrize("method", CAPTURED)
def test_a_captured_step_replays_as_the_eager_one(method: str) -> None:
    model, eager = audio_visual_for(method).cuda(), audio_visual_for(method).cuda()
    data = [(tuple(x.cuda() for x in xs), y.cuda()) for xs, y in batches(model, 8)]
    options = acting(method, AUDIO_VISUAL)
    torch.manual_seed(0)
    optimizer = balanced(model, method, sgd(model), **options)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    inputs, target = (tuple(x.clone() for x in data[0][0]), data[0][1].clone())

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(*inputs), target).backward()
        optimizer.step()

    def fill(batch: Any) -> None:
        for place, value in zip((*inputs, target), (*batch[0], batch[1]), strict=True):
            place.copy_(value)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for batch in data[:3]:
            fill(batch)
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for batch in data[3:]:
        fill(batch)
        graph.replay()

    torch.manual_seed(0)
    train(eager, balanced(eager, method, sgd(eager), **options), data)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
