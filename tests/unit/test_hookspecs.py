"""Values that hooks may not return."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import attrs
import pytest
import torch

from modbalance import ConfigError, Method, hookimpl
from support.training import balanced, batches, multimodal, train


@attrs.define(eq=False, kw_only=True)
class Returning(Method):
    """Returns from each hook what a test says."""

    name: ClassVar[str] = "returning"
    values: dict[str, Any] = attrs.field(factory=dict)

    @hookimpl
    def modbalance_features(self) -> Any:
        return self.values.get("features")

    @hookimpl
    def modbalance_observe(self) -> Any:
        return self.values.get("observe")

    @hookimpl
    def modbalance_losses(self) -> Any:
        return self.values.get("losses")

    @hookimpl
    def modbalance_coefficients(self) -> Any:
        return self.values.get("coefficients")


@pytest.mark.parametrize(
    ("hook", "value", "found"),
    [
        ("features", {"c": torch.zeros(6, 4)}, "Found ['c']"),
        ("observe", {"score": 1.0}, "Found 'score': float"),
        ("observe", [torch.zeros(())], "Found list"),
        ("losses", torch.zeros(()), "Found Tensor"),
        ("losses", {"extra": torch.zeros(2)}, "Found 'extra': a tensor of shape (2,)"),
        ("coefficients", {"a": 0.5}, "Found 'a': float"),
        ("coefficients", {"a": torch.ones(2)}, "Found 'a': a tensor of shape (2,)"),
        ("coefficients", {"c": torch.ones(())}, "Found 'c': a tensor of shape ()"),
    ],
)
def test_what_a_hook_may_not_return(hook: str, value: Any, found: str) -> None:
    model = multimodal()
    optimizer = balanced(model, Returning(values={hook: value}))

    with pytest.raises(ConfigError, match=f"`modbalance_{hook}` of method `returning` should.*{re.escape(found)}"):
        train(model, optimizer, batches(model, 1))
