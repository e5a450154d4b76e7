"""`apply="update"` against a slow twin: optimizers written out, with coefficients on their updates."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from support.models import Multimodal
from support.reference import ogm_ge
from support.reference.update import AdamRule, MuonRule, RMSpropRule, Rule, UpdateTwin
from support.training import assert_close, balanced, batches, multimodal, train, weights

Make = Callable[[Multimodal], Any]


def _muon(model: Multimodal) -> list[Optimizer]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [torch.optim.Muon(matrices, lr=0.05, weight_decay=0.3, momentum=0.9), SGD(others, lr=0.05)]


PAIRS: dict[str, tuple[Make, Callable[..., Rule]]] = {
    "SGD": (
        lambda model: SGD(model.parameters(), lr=0.1, weight_decay=0.1),
        partial(Rule, lr=0.1, wd=0.1),
    ),
    "momentum": (
        lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
        partial(Rule, lr=0.1, wd=0.1, mu=0.9),
    ),
    "Adam": (
        lambda model: Adam(model.parameters(), lr=0.01, weight_decay=0.3),
        partial(AdamRule, lr=0.01, wd=0.3),
    ),
    "AdamW": (
        lambda model: AdamW(model.parameters(), lr=0.01, weight_decay=0.3),
        partial(AdamRule, lr=0.01, wd=0.3, decoupled=True),
    ),
    "RMSprop": (
        lambda model: RMSprop(model.parameters(), lr=0.01, momentum=0.5, weight_decay=0.1),
        partial(RMSpropRule, lr=0.01, wd=0.1, mu=0.5),
    ),
}
if hasattr(torch.optim, "Muon"):
    PAIRS["Muon and SGD"] = (_muon, partial(MuonRule, lr=0.05, wd=0.3, mu=0.9))
HAS_KEY = "decoupled_weight_decay" in inspect.signature(Adam).parameters  # not yet in torch 2.6
if HAS_KEY:
    PAIRS["Adam, decoupled"] = (
        lambda model: Adam(model.parameters(), lr=0.01, weight_decay=0.3, decoupled_weight_decay=True),
        partial(AdamRule, lr=0.01, wd=0.3, decoupled=True),
    )


def twin_of(model: Multimodal, rule: Callable[..., Rule], **options: Any) -> UpdateTwin:
    """Return the twin of a training of this very model."""
    encoders = list(model.encoders.values())
    head: Any = model.fusion.fc_out

    def encode(*inputs: Tensor) -> list[Tensor]:
        return [phi(x) for phi, x in zip(encoders, inputs, strict=True)]

    def unimodal(z: list[Tensor]) -> list[Tensor]:
        return ogm_ge.sliced(z, head.weight, head.bias)

    inner = rule(parameters=model.parameters())
    return UpdateTwin(encoders=encoders, encode=encode, head=model.fusion, unimodal=unimodal, inner=inner, **options)


def ours_and_twin(name: str, clip: float | None = None, **options: Any) -> tuple[Multimodal, Multimodal]:
    make, rule = PAIRS[name]
    ours, theirs = (multimodal("abc", dtype=torch.float64) for _ in range(2))
    optimizer = balanced(ours, "ogm", make(ours), apply="update", clip_grad_norm=clip, **options)
    data = batches(ours, 6, dtype=torch.float64)
    train(ours, optimizer, data)
    twin = twin_of(theirs, rule, clip=clip, **({"param_filter": "all"} | options))
    for inputs, y in data:
        twin.step(inputs, y)
    return ours, theirs


@pytest.mark.parametrize("name", PAIRS)
def test_every_optimizer_equals_its_twin(name: str) -> None:
    assert_close(*ours_and_twin(name), 1e-12)


@pytest.mark.parametrize("name", ["momentum", "AdamW"])
@pytest.mark.parametrize("options", [{"clip": 0.1}, {"param_filter": "matrix"}, {"alpha": 3.0}])
def test_with_options(name: str, options: dict[str, Any]) -> None:
    assert_close(*ours_and_twin(name, **options), 1e-12)


@pytest.mark.filterwarnings("ignore:.*almost no effect:modbalance.ModbalanceWarning")
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("method", ["ogm", "none"])
def test_the_twin_tells_the_ways_to_apply_apart(method: str, name: str) -> None:
    """Coefficients on gradients, and no coefficients, lead elsewhere."""
    ours, _ = ours_and_twin(name)
    other = multimodal("abc", dtype=torch.float64)
    train(other, balanced(other, method, PAIRS[name][0](other)), batches(other, 6, dtype=torch.float64))
    pairs = zip(weights(ours).values(), weights(other).values(), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) > 1e-4


DECOUPLED: dict[str, Callable[..., Optimizer]] = {
    "AdamW": AdamW,
    "NAdam": partial(NAdam, decoupled_weight_decay=True),
    "RAdam": partial(RAdam, decoupled_weight_decay=True),
}
if HAS_KEY:
    DECOUPLED["Adam"] = partial(Adam, decoupled_weight_decay=True)


def after_a_step(make: Callable[..., Optimizer], wd: float) -> dict[str, Tensor]:
    model = multimodal(dtype=torch.float64)
    inner = make(model.parameters(), lr=0.01, weight_decay=wd)
    train(model, balanced(model, "ogm", inner, apply="update", alpha=3.0), batches(model, 1, dtype=torch.float64))
    return weights(model)


@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled_decay_is_not_scaled(name: str) -> None:
    """In a first step, the decay moves the weights by -lr wd p, whatever the coefficient."""
    start = weights(multimodal(dtype=torch.float64))
    without, decayed = (after_a_step(DECOUPLED[name], wd) for wd in (0.0, 0.3))
    for key, before in start.items():
        torch.testing.assert_close(decayed[key] - without[key], -0.01 * 0.3 * before, rtol=1e-9, atol=1e-14)
