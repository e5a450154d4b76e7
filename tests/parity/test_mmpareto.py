"""MMPareto against runs of the authors' code, and against a slow twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from modbalance import BalancedOptimizer
from support.encoders import mixed
from support.models import FrameEncoder, conv_encoder
from support.reference import ogm_ge
from support.reference.mmpareto import Twin
from support.training import assert_close, balanced, batches, sgd, train
from support.trajectories import Trajectory

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40, phases=[Phase.generate, Phase.shrink])
RUNS = ["conflict", "half", "mixed", "agree", "edges", "adam"]
LIMITS = {"mixed": 5e-6}
"""One run is ill-conditioned: in double precision it ends 7e-7 away, see the README of the runs."""


class OwnHeads(nn.Module):
    """The model of the recorded runs: logits of the concatenation, and own heads that the forward does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net, self.visual_net = conv_encoder(1), FrameEncoder()
        self.head, self.head_audio, self.head_video = nn.Linear(16, 6), nn.Linear(8, 6), nn.Linear(8, 6)

    def encode(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [self.audio_net(audio.unsqueeze(1)).mean((2, 3)), self.visual_net(visual).mean((1, 3, 4))]

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat(self.encode(audio, visual), 1))


def start(name: str) -> tuple[Trajectory, OwnHeads, Optimizer]:
    recorded, model = Trajectory(f"mmpareto_{name}"), OwnHeads()
    recorded.start(model)
    meta = recorded.meta
    if meta["optimizer"] == "adam":
        return recorded, model, Adam(model.parameters(), lr=meta["lr"])
    decay = meta["weight_decay"]
    return recorded, model, SGD(model.parameters(), lr=meta["lr"], momentum=meta["momentum"], weight_decay=decay)


@pytest.mark.parametrize("name", RUNS)
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded, model, inner = start(name)
    optimizer = BalancedOptimizer(
        inner,
        "mmpareto",
        model=model,
        modalities={"audio": "audio_net", "visual": "visual_net"},
        fusion="head",
        feature_sizes={"audio": 8, "visual": 8},
        unimodal={"audio": "head_audio", "visual": "head_video"},
        gamma=recorded.meta["gamma"],
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    cosines = []
    for batch in recorded.batches(torch.float32):
        train(model, optimizer, [batch], criterion)
        found = optimizer.metrics()
        cosines += [found["mmpareto/cosine/audio"], found["mmpareto/cosine/visual"]]
    assert cosines == pytest.approx(recorded.meta["cosines"], abs=1e-6)
    assert recorded.error(model) <= LIMITS.get(name, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_twin_equals_the_authors_code(name: str) -> None:
    recorded, model, inner = start(name)
    twin = Twin(
        encoders=[model.audio_net, model.visual_net],
        encode=model.encode,
        fusion=lambda *z: model.head(torch.cat(z, 1)),
        unimodal=lambda z: [model.head_audio(z[0]), model.head_video(z[1])],
        inner=inner,
    )
    for inputs, y in recorded.batches(torch.float32):
        twin.step(inputs, y)
    assert recorded.error(model) <= LIMITS.get(name, 1e-6)


def with_heads(names: str, head: str) -> Any:
    """Return a model with own heads that start against the fused one, so that gradients are in conflict."""
    model: Any = mixed(names, ["layer norm"] * len(names), head, dtype=torch.float64)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model.own = nn.ModuleDict({name: nn.Linear(4, 3) for name in names}).double()
    return model


@pytest.mark.slow
@SETTINGS
@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    head=st.sampled_from(["concat", "mlp", "gated"]),
    size=st.integers(1, 5),
    gamma=st.sampled_from([0.7, 1.5]),
    rescale=st.sampled_from(["tensor", "encoder", "none"]),
    heads=st.sampled_from(["own", "slice"]),
)
def test_the_method_equals_the_twin(names: str, head: str, size: int, heads: str, **options: Any) -> None:
    ours, theirs = (with_heads(names, head) for _ in range(2))
    data = batches(ours, 4, size, dtype=torch.float64)
    own: dict[str, Any] = {"unimodal": {name: f"own.{name}" for name in names}} if heads == "own" else {}
    optimizer = balanced(ours, "mmpareto", heads=heads, **own, **options)
    encoders = [*theirs.encoders.values()]

    def unimodal(z: list[Tensor]) -> list[Tensor]:
        if heads == "own":
            return [theirs.own[name](z_u) for name, z_u in zip(names, z, strict=True)]
        if head == "concat":
            return ogm_ge.sliced(z, theirs.fusion.fc_out.weight, theirs.fusion.fc_out.bias)
        return ogm_ge.zeroed(z, theirs.fusion)

    twin = Twin(
        encoders=encoders,
        encode=lambda *x: [phi(x_u) for phi, x_u in zip(encoders, x, strict=True)],
        fusion=theirs.fusion,
        unimodal=unimodal,
        inner=sgd(theirs),
        heads=heads,
        **options,
    )
    train(ours, optimizer, data * 3)
    for inputs, y in data * 3:
        twin.step(inputs, y)
    assert_close(ours, theirs, 1e-10)
