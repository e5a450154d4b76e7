"""torch.compile, activation checkpointing and autocast around the hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modbalance import BalancedOptimizer, ObservationError
from support.models import AudioVisual, Multimodal
from support.training import assert_close, audio_visual, balanced, batches, multimodal, sgd, train

LOSS = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def wrapped(model: nn.Module, compiled: Any, method: str = "ogm") -> BalancedOptimizer:
    modalities = {"audio": "audio_net", "visual": "visual_net"}
    return BalancedOptimizer(sgd(model), method, model=compiled, modalities=modalities, fusion="fusion_module")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ogm", "ogm_ge"])
def test_a_compiled_model_trains_as_the_eager_one_without_graph_breaks(method: str) -> None:
    model, eager = audio_visual(), audio_visual()
    data = batches(model, 3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = wrapped(model, compiled, method)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in data:
        optimizer.zero_grad()
        criterion(compiled(*inputs), target).backward()
        optimizer.step()
    assert_close(model, train(eager, balanced(eager, method), data), atol=1e-6)
    assert optimizer._lifecycle.training.steps == 3


def test_window_edges_of_a_compiled_model() -> None:
    model, eager = audio_visual(), audio_visual()
    data = batches(model, 3)
    compiled = torch.compile(model, backend="eager")
    optimizer = wrapped(model, compiled)
    other = balanced(eager)
    for each, forward, opt in ((model, compiled, optimizer), (eager, eager, other)):
        criterion = opt.criterion(LOSS)
        for epoch, (inputs, target) in zip((50, 51, 0), data, strict=True):
            each.train()
            opt.epoch = epoch
            opt.zero_grad()
            criterion(forward(*inputs), target).backward()
            opt.step()
    assert_close(model, eager, atol=1e-6)
    assert optimizer._lifecycle.training.steps == 2


def test_hooks_added_after_the_first_compiled_call_are_noticed() -> None:
    model = audio_visual()
    inputs, target = batches(model, 1)[0]
    compiled = torch.compile(model, backend="eager")
    compiled(*inputs)
    optimizer = wrapped(model, compiled)
    criterion = optimizer.criterion(LOSS)
    with pytest.raises(ObservationError, match=r"torch\._dynamo\.reset\(\)"):
        criterion(compiled(*inputs), target)
    torch._dynamo.reset()
    criterion(compiled(*inputs), target).backward()
    optimizer.step()
    assert optimizer._lifecycle.training.steps == 1


class Checkpointed(AudioVisual):
    """Recomputes encoders and fusion in the backward."""

    use_reentrant = False

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        recomputed: Tensor = checkpoint(super().forward, audio, visual, use_reentrant=self.use_reentrant)
        return recomputed


@pytest.mark.parametrize("from_outside", [False, True])
def test_activation_checkpointing_adds_no_observation(from_outside: bool) -> None:
    plain = audio_visual()
    model = audio_visual() if from_outside else Checkpointed()
    model.load_state_dict(plain.state_dict())
    data = batches(model, 3)
    optimizer = balanced(model)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in data:
        optimizer.zero_grad()
        logits = checkpoint(model, *inputs, use_reentrant=False) if from_outside else model(*inputs)
        loss = criterion(logits, target)
        forward = optimizer._lifecycle.training.watch.forward
        loss.backward()
        assert optimizer._lifecycle.training.watch.forward is forward
        optimizer.step()
    train(plain, other := balanced(plain), data)
    assert optimizer.metrics() == pytest.approx(other.metrics(), abs=1e-6)


def test_reentrant_checkpointing_hides_the_features_and_says_so() -> None:
    model = Checkpointed()
    model.use_reentrant = True
    optimizer = balanced(model)
    (audio, visual), target = batches(model, 1)[0]
    with pytest.raises(ObservationError, match="use_reentrant=False"):
        optimizer.criterion(LOSS)(model(audio.requires_grad_(), visual), target)


@pytest.mark.parametrize("head", ["concat", "mlp", "attention"])
@pytest.mark.parametrize("inside", [True, False])
def test_autocast_around_the_forward(head: str, inside: bool) -> None:
    """The criterion may stand inside or outside of the autocast context of the forward."""
    model = multimodal(("a", "b"), head)
    optimizer = balanced(model)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in batches(model, 3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(*inputs)
            if inside:
                loss = criterion(logits, target)
        if not inside:
            loss = criterion(logits.float(), target)
        loss.backward()
        optimizer.step()
    metrics = optimizer.metrics()
    assert optimizer._lifecycle.training.unimodal.kind == ("slice" if head == "concat" else "zero")
    assert sum(metrics[f"ogm/nonfinite/{name}"] for name in ("a", "b")) == 0
    assert 0 < metrics["ogm/coefficient/a"] <= 1


def test_copies_of_a_model_carry_no_live_hooks() -> None:
    model = multimodal()
    optimizer = balanced(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    copied = averaged.module
    assert isinstance(copied, Multimodal)
    copied(*batches(model, 1)[0][0])
    assert optimizer._lifecycle.training.watch.forward is None
    model(*batches(model, 1)[0][0])
    assert optimizer._lifecycle.training.watch.forward is not None
