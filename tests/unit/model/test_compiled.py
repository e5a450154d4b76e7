"""Compiled code of a model's classes: found, dropped, and made to check for hooks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from modbalance._model.compiled import is_compiled, respect_hooks
from support.models import Multimodal
from support.training import audio_visual, batches, multimodal


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch.compiler.reset()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
        yield
    torch.compiler.reset()


def run_compiled(model: nn.Module) -> None:
    inputs, _ = batches(model, 1)[0]
    torch.compile(model, backend="eager")(*inputs)


def test_code_is_found_by_class() -> None:
    model = multimodal()
    assert not is_compiled(model)
    run_compiled(model)
    assert is_compiled(model)
    assert is_compiled(multimodal(seed=1))
    assert not is_compiled(audio_visual())


def test_code_of_the_models_classes_alone_is_dropped() -> None:
    model, other = multimodal(), audio_visual()
    run_compiled(model)
    run_compiled(other)
    respect_hooks(model)
    assert not is_compiled(model)
    assert is_compiled(other)


def test_code_from_then_on_checks_for_hooks() -> None:
    model = multimodal()
    respect_hooks(model)
    run_compiled(model)
    calls: list[nn.Module] = []
    assert isinstance(model, Multimodal)
    model.fusion.register_forward_pre_hook(lambda module, args: calls.append(module))
    run_compiled(model)
    assert calls == [model.fusion]
