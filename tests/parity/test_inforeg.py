"""InfoReg against runs of both versions of the authors' code, and against a slow twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from support.encoders import mixed
from support.models import AudioVisual, ConcatFusion, Multimodal, SumFusion
from support.reference import ogm_ge
from support.reference.inforeg import Twin
from support.training import assert_close, balanced, batches, sgd, train
from support.trajectories import Trajectory

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40, phases=[Phase.generate, Phase.shrink])
RUNS = ["inforeg_concat", "inforeg_sum", "inforeg_window"]
OWN_HEADS = {"audio": "fusion_module.fc_x", "visual": "fusion_module.fc_y"}


def start(name: str) -> tuple[Trajectory, AudioVisual, SGD]:
    recorded = Trajectory(name)
    model = AudioVisual({"concat": ConcatFusion, "sum": SumFusion}[recorded.meta["fusion"]])
    recorded.start(model)
    return recorded, model, SGD(model.parameters(), lr=recorded.meta["lr"], momentum=0.9, weight_decay=1e-4)


def strength(recorded: Trajectory) -> dict[str, float]:
    """Return c_i; the first release never regulates the second modality."""
    audio, visual = recorded.meta["coef"]
    return {"audio": audio, "visual": visual if recorded.meta["version"] == "head" else 0.0}


@pytest.mark.parametrize("name", RUNS)
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded, model, inner = start(name)
    meta = recorded.meta
    options: dict[str, Any] = {"strength": strength(recorded), "threshold": meta["threshold"]}
    if isinstance(model.fusion_module, SumFusion):
        options["unimodal"] = OWN_HEADS
    optimizer = balanced(model, "inforeg", inner, **options)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for epoch in range(meta["epochs"]):
        train(model, optimizer, recorded.batches(torch.float32), criterion)
        optimizer.end_epoch()
        found = optimizer.metrics()
        assert found["inforeg/change/audio"] == pytest.approx(meta["k"][epoch], abs=1e-5)
        for modality in ("audio", "visual"):
            assert found[f"inforeg/open/{modality}"] == (meta["k"][epoch] > meta["threshold"])
            expected = meta[f"trace_{modality}"][epoch]
            assert found[f"inforeg/trace/{modality}"] == pytest.approx(expected, rel=1e-5)
    assert recorded.error(model) <= 1e-6


def of_recorded(model: AudioVisual, inner: Optimizer, **options: Any) -> Twin:
    def encode(audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [model.audio_net(audio.unsqueeze(1)).mean((2, 3)), model.visual_net(visual).mean((1, 3, 4))]

    def unimodal(z: list[Tensor]) -> list[Tensor]:
        fusion = model.fusion_module
        if isinstance(fusion, SumFusion):
            return [fusion.fc_x(z[0]), fusion.fc_y(z[1])]
        assert isinstance(fusion, ConcatFusion)
        return ogm_ge.sliced(z, fusion.fc_out.weight, fusion.fc_out.bias)

    encoders = [model.audio_net, model.visual_net]
    return Twin(encoders=encoders, encode=encode, fusion=model.fusion_module, unimodal=unimodal, inner=inner, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_twin_equals_the_authors_code(name: str) -> None:
    recorded, model, inner = start(name)
    options = {"strength": [*strength(recorded).values()], "threshold": recorded.meta["threshold"]}
    twin = of_recorded(model, inner, **options)
    for epoch in range(recorded.meta["epochs"]):
        twin.start_epoch()
        assert twin.k[0] == pytest.approx(recorded.meta["k"][epoch], abs=1e-5)
        for inputs, y in recorded.batches(torch.float32):
            twin.step(inputs, y)
        twin.end_epoch()
    assert recorded.error(model) <= 1e-6


def twin_of(model: Multimodal, **options: Any) -> Twin:
    encoders = [*model.encoders.values()]

    def unimodal(z: list[Tensor]) -> list[Tensor]:
        if isinstance(model.fusion, ConcatFusion):
            return ogm_ge.sliced(z, model.fusion.fc_out.weight, model.fusion.fc_out.bias)
        return ogm_ge.zeroed(z, model.fusion)

    return Twin(
        encoders=encoders,
        encode=lambda *x: [phi(x_u) for phi, x_u in zip(encoders, x, strict=True)],
        fusion=model.fusion,
        unimodal=unimodal,
        inner=sgd(model),
        **options,
    )


@pytest.mark.slow
@SETTINGS
@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    head=st.sampled_from(["concat", "mlp", "gated"]),
    size=st.integers(2, 5),
    threshold=st.sampled_from([0.0, 0.3, 0.6]),
    window=st.sampled_from([1, 2, 10]),
    unimodal_weight=st.sampled_from([0.0, 0.5, 1.0]),
    window_of=st.sampled_from(["first", "each", "joint"]),
    gap=st.sampled_from(["sum", "mean"]),
    against=st.sampled_from(["mean_others", "best"]),
    trace_of_regulated=st.booleans(),
)
def test_the_method_equals_the_twin(names: str, head: str, size: int, **options: Any) -> None:
    ours, theirs = (mixed(names, ["layer norm"] * len(names), head, dtype=torch.float64) for _ in range(2))
    data = batches(ours, 3, size, dtype=torch.float64)
    strengths = [0.9, 0.4, 0.2, 0.0][: len(names)]
    optimizer = balanced(ours, "inforeg", strength=dict(zip(names, strengths, strict=True)), **options)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    twin = twin_of(theirs, strength=strengths, **options)
    for _ in range(4):
        train(ours, optimizer, data, criterion)
        optimizer.end_epoch()
        twin.start_epoch()
        for inputs, y in data:
            twin.step(inputs, y)
        twin.end_epoch()
    assert_close(ours, theirs, 1e-10)
