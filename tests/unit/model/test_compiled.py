"""Compiled code of a model's classes: found, dropped, and made to check for hooks."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modbalance._model.compiled import is_compiled, respect_hooks
from support.models import Multimodal
from support.training import audio_visual, batches, multimodal


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch.compiler.reset()
    # Both are set for good; what stands in the patch is put back.
    flag = "use_recursive_dict_tags_for_guards"
    tags = {flag: True} if hasattr(torch._dynamo.config, flag) else {}
    with torch._dynamo.config.patch({"skip_nnmodule_hook_guards": True, **tags}):
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


class Switched(nn.Module):
    """Doubles its input where an attribute of another object is set."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.switch = SimpleNamespace(on=None)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value * 2 if self.switch.on is not None else value


def test_compiled_code_follows_attributes_in_every_python() -> None:
    model = Switched()
    respect_hooks(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    one = torch.ones(1)
    assert [compiled(one).item() for _ in range(5)] == [1.0] * 5

    model.switch.on = object()

    assert compiled(one).item() == 2.0, "Python 3.13.0 does not report this change"


@pytest.mark.parametrize("reports", [True, False])
def test_guards_are_shortened_where_python_reports_changes_alone(
    monkeypatch: pytest.MonkeyPatch, reports: bool
) -> None:
    monkeypatch.setattr("modbalance._model.compiled.REPORTS_CHANGES", reports)
    respect_hooks(multimodal())
    assert getattr(torch._dynamo.config, "use_recursive_dict_tags_for_guards", reports) is reports
