"""torch.compile, activation checkpointing and autocast around the hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modbalance import BalancedOptimizer, ObservationError
from support.models import AudioVisual, Multimodal
from support.training import Batch, assert_close, audio_visual, balanced, batches, multimodal, sgd, train

LOSS = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    with default_guards():
        yield
    torch._dynamo.reset()


def default_guards() -> AbstractContextManager[None]:
    """Return a context with torch's own setting, as before any BalancedOptimizer is built."""
    return torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)


def wrapped(model: nn.Module, compiled: Any, method: str = "ogm", **options: Any) -> BalancedOptimizer:
    modalities = {"audio": "audio_net", "visual": "visual_net"}
    return BalancedOptimizer(
        sgd(model), method, model=compiled, modalities=modalities, fusion="fusion_module", **options
    )


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


# Hooks and code that was compiled before them


def in_place(model: nn.Module) -> Any:
    model.compile(backend="eager")
    return model


def around(model: nn.Module) -> Any:
    return torch.compile(lambda *inputs: model(*inputs), backend="eager")


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda model: torch.compile(model, backend="eager"),
    "in place": in_place,
    "function around it": around,
}
METHODS = ["none", "ogm", "dgl", "cggm", "agm"]


def described(model: nn.Module, method: str) -> BalancedOptimizer:
    return wrapped(model, model, method, **({"clip_trigger": None} if method == "agm" else {}))


def take_step(forward: Any, optimizer: BalancedOptimizer, data: Batch) -> None:
    inputs, target = data
    optimizer.zero_grad()
    optimizer.criterion(LOSS)(forward(*inputs), target).backward()
    optimizer.step()


def trained(method: str, data: list[Batch]) -> AudioVisual:
    """Return an eager model after the same steps."""
    torch.manual_seed(0)
    model = audio_visual()
    optimizer = described(model, method)
    for batch in data:
        take_step(model, optimizer, batch)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [METHODS, METHODS[::-1]], ids=["none first", "none last"])
def test_trainings_one_after_the_other_run_no_code_of_each_other(form: str, order: list[str]) -> None:
    """Equal classes, other hooks: code of one training must not run in the next."""
    data = batches(audio_visual(), 2)
    for method in order:
        torch.manual_seed(0)
        model = audio_visual()
        forward = FORMS[form](model)
        optimizer = described(model, method)
        for batch in data:
            take_step(forward, optimizer, batch)
        assert_close(model, trained(method, data), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_trainings_that_alternate_run_no_code_of_each_other(form: str) -> None:
    data = batches(audio_visual(), 3)
    models = {method: audio_visual() for method in ("none", "ogm", "dgl")}
    forwards = {method: FORMS[form](model) for method, model in models.items()}
    optimizers = {method: described(model, method) for method, model in models.items()}
    for batch in data:
        for method, optimizer in optimizers.items():
            take_step(forwards[method], optimizer, batch)
    for method, model in models.items():
        assert_close(model, trained(method, data), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["module", "in place"])
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_model_that_ran_before_the_optimizer_was_built_trains(form: str, method: str) -> None:
    data = batches(audio_visual(), 2)
    model = audio_visual()
    state = copy.deepcopy(model.state_dict())
    with default_guards():
        forward = FORMS[form](model)
        forward(*data[0][0])
    model.load_state_dict(state)
    torch.manual_seed(0)
    optimizer = described(model, method)
    for batch in data:
        take_step(forward, optimizer, batch)
    assert_close(model, trained(method, data), atol=1e-6)


@pytest.mark.parametrize(("method", "message"), [("ogm", "no forward"), ("dgl", "no forward"), ("agm", "Found none")])
def test_a_compiled_function_that_ran_before_the_optimizer_was_built_is_noticed(method: str, message: str) -> None:
    model = audio_visual()
    batch = batches(model, 1)[0]
    with default_guards():
        forward = around(model)
        forward(*batch[0])
    optimizer = described(model, method)
    with pytest.raises(ObservationError, match=rf"{message}.*torch\.compiler\.reset\(\)"):
        take_step(forward, optimizer, batch)
    torch.compiler.reset()
    take_step(forward, optimizer, batch)
    assert optimizer._lifecycle.training.steps == 1


@pytest.mark.parametrize("form", ["module", "in place"])
@pytest.mark.parametrize("had_a_hook", [True, False])
def test_hooks_that_torch_does_not_check_for_are_noticed(form: str, had_a_hook: bool) -> None:
    """With torch's default setting, a later hook fires only where a hook was before compilation."""
    model = audio_visual()
    batch = batches(model, 1)[0]
    if had_a_hook:
        model.fusion_module.register_forward_pre_hook(lambda *_: None)
    first = described(model, "none")
    forward = FORMS[form](model)
    with default_guards():
        take_step(forward, first, batch)
    with patch("torch._dynamo.eval_frame.remove_from_cache"):
        optimizer = described(model, "ogm")
    if had_a_hook:
        take_step(forward, optimizer, batch)
    else:
        with pytest.raises(ObservationError, match=r"compiled code without them.*torch\.compiler\.reset\(\)"):
            take_step(forward, optimizer, batch)
        torch.compiler.reset()
        take_step(forward, optimizer, batch)
    assert optimizer._lifecycle.training.steps == 1


def test_a_model_that_was_not_called_is_not_put_down_to_the_compiler() -> None:
    model = audio_visual()
    inputs, target = batches(model, 1)[0]
    torch.compile(model, backend="eager")(*inputs)
    optimizer = described(model, "ogm")
    logits = torch.zeros(len(target), 6, requires_grad=True)
    with pytest.raises(ObservationError, match="no forward of the model was seen"):
        optimizer.criterion(LOSS)(logits, target)


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
