"""The inner optimizers that the wrapper tests run over, and a method with declared state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import attrs
import schedulefree
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from modbalance import BalancedOptimizer, Batch, Method, ModbalanceWarning, Step, hookimpl, option, state
from modbalance.method import between
from support.models import Multimodal
from support.training import balanced

Factory = Callable[[Iterable[Any]], Optimizer]


def _schedule_free(parameters: Iterable[Any]) -> Optimizer:
    optimizer: Any = schedulefree.AdamWScheduleFree(parameters, lr=1e-2, weight_decay=1e-2, warmup_steps=2)
    optimizer.train()
    return optimizer


INNER: dict[str, Factory] = {
    "SGD": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "Adam": lambda parameters: Adam(parameters, lr=1e-2),
    "AdamW": lambda parameters: AdamW(parameters, lr=1e-2, weight_decay=1e-2),
    "RMSprop": lambda parameters: RMSprop(parameters, lr=1e-3, momentum=0.5),
    "Adagrad": lambda parameters: Adagrad(parameters, lr=1e-2),
    "AdamWScheduleFree": _schedule_free,
}
SCALE_INVARIANT = [name for name in INNER if name != "SGD"]


@attrs.define(eq=False, kw_only=True)
class Memory(Method):
    """Scales each encoder by a running mean of its score: the least method whose declared state matters."""

    name: ClassVar[str] = "memory"
    needs = frozenset({"unimodal_logits", "target"})

    decay: float = option(0.9, between(0, 1), "share of the old mean")
    mean: dict[str, Tensor] = state({})
    steps: int = state(0)

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        """Sum the scores of each modality."""
        return {name: batch.score(logits, name)[0] for name, logits in batch.unimodal_logits.items()}

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return the running mean as it would be with this step."""
        step.cache["mean"] = {name: self._moved(name, value) for name, value in step.stats.items()}
        return {name: 1 / (1 + value) for name, value in step.cache["mean"].items()}

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        """Keep the running mean."""
        self.mean = step.cache["mean"]
        self.steps += 1

    def _moved(self, name: str, value: Tensor) -> Tensor:
        return self.decay * self.mean.get(name, torch.zeros_like(value)) + (1 - self.decay) * value


def wrap(model: nn.Module, name: str, method: Any = "ogm", **arguments: Any) -> BalancedOptimizer:
    """Return a BalancedOptimizer around ``INNER[name]``, without the note on scale-invariant updates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*almost no effect.*", ModbalanceWarning)
        return balanced(model, method, INNER[name](model.parameters()), **arguments)


def model_free(model: Multimodal, parts: slice = slice(None), **arguments: Any) -> BalancedOptimizer:
    """Return OGM around SGD groups of modalities a and b, which never sees the model.

    Args:
        model: Where the parameters come from.
        parts: Layers of each encoder that are in the groups.
        arguments: Passed on to BalancedOptimizer.
    """
    layers: dict[str, Any] = {name: model.encoders[name] for name in ("a", "b")}
    groups: list[dict[str, Any]] = [
        {"params": list(encoder[parts].parameters()), "modality": name} for name, encoder in layers.items()
    ]
    groups.append({"params": list(model.fusion.parameters())})
    return BalancedOptimizer(SGD(groups, lr=0.1), "ogm", param_filter="all", **arguments)


def inner_of(optimizer: BalancedOptimizer) -> Optimizer:
    """Return the wrapped optimizer."""
    return optimizer._inner


def assert_same_state(actual: Any, expected: Any, at: str = "state") -> None:
    """Assert that two state dicts are equal: keys, types, numbers, and tensors bit for bit."""
    assert type(actual) is type(expected), f"{at}: {type(actual)} and {type(expected)}"
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), f"{at} differs"
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), f"keys of {at} differ"
        for key, value in expected.items():
            assert_same_state(actual[key], value, f"{at}[{key!r}]")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), f"lengths of {at} differ"
        for index, value in enumerate(expected):
            assert_same_state(actual[index], value, f"{at}[{index}]")
    else:
        assert actual == expected, f"{at}: {actual} and {expected}"
