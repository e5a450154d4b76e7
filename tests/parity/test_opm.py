"""OPM, alone and with OGM, against runs of the authors' code, and against a slow twin in the paper's notation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from modbalance import BalancedOptimizer
from modbalance._plugins import load_method
from modbalance_opm import OPM
from support.encoders import mixed
from support.models import FrameEncoder, Multimodal, conv_encoder
from support.reference.opm import Twin, slices
from support.training import Batch, assert_close, balanced, batches, sgd, train
from support.trajectories import Trajectory

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40, phases=[Phase.generate, Phase.shrink])
ONE_EPOCH = ["opm_concat", "opm_always", "opm_ogm"]
RUNS = [*ONE_EPOCH, "opm_warmup", "opm_clip", "opm_window"]
Draw = tuple[bool, Tensor]


@attrs.define(eq=False, kw_only=True)
class Replayed(OPM):
    """Takes the draws of a list, one a step; keeps the rates of each."""

    draws: list[Draw] = attrs.field(factory=list, repr=False)
    seen: list[Tensor] = attrs.field(factory=list, repr=False)

    def draw(self, step: int, q: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        executed, bits = self.draws[step]
        assert bits.shape == shape
        self.seen.append(q)
        return torch.tensor(executed), bits.bool()


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fxy = nn.Linear(16, 6)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fxy(torch.cat([audio, visual], -1))


class Model(nn.Module):
    """The reference model under the names of the recorded runs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_1, self.encoder_2, self.fusion_model = conv_encoder(1), FrameEncoder(), Fusion()

    def encode(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [self.encoder_1(audio.unsqueeze(1)).mean((2, 3)), self.encoder_2(visual).mean((1, 3, 4))]

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fusion_model(*self.encode(audio, visual))


def start(name: str) -> tuple[Trajectory, Model, Optimizer, list[int]]:
    """Return the recorded run, its model and optimizer, and the epoch of each step."""
    recorded = Trajectory(name)
    meta, model = recorded.meta, Model()
    recorded.start(model)
    kinds: dict[str, Any] = {"sgd": SGD, "adamw": AdamW}
    momentum = {"momentum": meta["momentum"]} if meta.get("optimizer", "sgd") == "sgd" else {}
    inner = kinds[meta.get("optimizer", "sgd")](
        model.parameters(), lr=meta["lr"], weight_decay=meta["weight_decay"], **momentum
    )
    epochs = [meta["epoch"]] * meta["steps"] if name in ONE_EPOCH else meta["epochs"]
    return recorded, model, inner, epochs if name in ONE_EPOCH else [e for e in epochs for _ in range(meta["steps"])]


def draws_of(recorded: Trajectory, steps: int) -> dict[int, dict[str, Tensor]]:
    """Return the recorded draws by step; none in the warm-up."""
    place = "batch" if recorded.meta["name"] in ONE_EPOCH else "draw"
    found = {step: recorded.part(f"{place}/{step}/") for step in range(steps)}
    return {step: each for step, each in found.items() if "mask" in each}


def data_of(recorded: Trajectory, steps: int) -> list[Batch]:
    drawn = [*recorded.batches(torch.float32)]
    return [drawn[step % len(drawn)] for step in range(steps)]


def options_of(recorded: Trajectory) -> dict[str, Any]:
    return {"q_base": recorded.meta["q_base"], "lam": recorded.meta["lam"]}


def replay(name: str, **options: Any) -> tuple[Trajectory, Model]:
    recorded, model, inner, epochs = start(name)
    draws = draws_of(recorded, len(epochs))
    opm = Replayed.configure(**options_of(recorded) | options)
    opm.draws = [(bool(each["executed"]), each["mask"]) for each in draws.values()]
    methods: list[Any] = [opm]
    if recorded.meta["ogm_alpha"]:
        # The warm-up holds for OGM as well.
        end = recorded.meta.get("ogm_ends", 80)
        ogm = load_method("ogm")
        methods += [ogm.configure(alpha=recorded.meta["ogm_alpha"], start_epoch=6, end_epoch=end, tie="last")]
    optimizer = BalancedOptimizer(
        inner,
        methods,
        model=model,
        modalities={"audio": "encoder_1", "visual": "encoder_2"},
        fusion="fusion_model",
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for epoch, batch in zip(epochs, data_of(recorded, len(epochs)), strict=True):
        optimizer.epoch = epoch
        train(model, optimizer, [batch], criterion)
    assert len(opm.seen) == len(draws)
    if not options:
        for found, expected in zip(opm.seen, draws.values(), strict=True):
            torch.testing.assert_close(found, expected["q"].float(), atol=2e-6, rtol=0)
    return recorded, model


@pytest.mark.parametrize("name", RUNS)
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded, model = replay(name)
    assert recorded.error(model) <= 1e-6


@pytest.mark.parametrize(("name", "distance"), [("opm_clip", 0.04), ("opm_warmup", 0.0012), ("opm_window", 0.01)])
def test_without_the_gradient_through_the_rate_a_recorded_run_ends_elsewhere(name: str, distance: float) -> None:
    recorded, model = replay(name, theta_gradient=False)
    assert recorded.error(model) == pytest.approx(distance, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("opm_ogm", "opm_window")])
def test_twin_equals_the_authors_code(name: str) -> None:
    recorded, model, inner, epochs = start(name)
    head = model.fusion_model.fxy
    twin = Twin(
        encode=model.encode,
        fusion=model.fusion_model,
        unimodal=lambda z: slices(z, head.weight, head.bias),
        inner=inner,
        **options_of(recorded),
    )
    draws = draws_of(recorded, len(epochs))
    for step, (inputs, y) in enumerate(data_of(recorded, len(epochs))):
        if step in draws:
            twin.step(inputs, y, bool(draws[step]["executed"]), draws[step]["mask"].tolist())
        else:
            inner.zero_grad()
            nn.functional.cross_entropy(model(*inputs), y).backward()
            inner.step()
    assert recorded.error(model) <= 1e-6


def unimodal_of(model: Multimodal, head: str, z: Sequence[Tensor]) -> list[Tensor]:
    if head == "concat":
        layer: Any = model.fusion
        return slices(z, layer.fc_out.weight, layer.fc_out.bias)
    frozen = {name: p.detach() for name, p in model.fusion.named_parameters()}
    alone = [[z_v if v == u else torch.zeros_like(z_v) for v, z_v in enumerate(z)] for u in range(len(z))]
    return [torch.func.functional_call(model.fusion, frozen, tuple(each)) for each in alone]


@pytest.mark.slow
@SETTINGS
@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    head=st.sampled_from(["concat", "gated", "film", "mlp", "attention"]),
    size=st.integers(1, 5),
    q_base=st.sampled_from([0.2, 0.5, 0.9]),
    lam=st.sampled_from([0.0, 0.5, 3.0]),
    theta_gradient=st.booleans(),
    ratio=st.sampled_from(["mean_others", "min"]),
)
def test_the_method_equals_the_twin(names: str, head: str, size: int, **options: Any) -> None:
    ours, theirs = (mixed(names, ["layer norm"] * len(names), head, dtype=torch.float64) for _ in range(2))
    data = batches(ours, 4, size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    draws = [(step != 1, torch.rand(size, len(names), generator=generator) < 0.6) for step in range(4)]
    opm = Replayed.configure(start_epoch=0, **options)
    opm.draws = draws
    train(ours, balanced(ours, opm), data)
    twin = Twin(
        encode=lambda *x: [phi(x_u) for phi, x_u in zip(theirs.encoders.values(), x, strict=True)],
        fusion=theirs.fusion,
        unimodal=lambda z: unimodal_of(theirs, head, z),
        inner=sgd(theirs),
        **options,
    )
    for (inputs, y), (executed, bits) in zip(data, draws, strict=True):
        twin.step(inputs, y, executed, bits.tolist())
    assert_close(ours, theirs, 1e-10)
