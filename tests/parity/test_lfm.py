"""LFM against runs of the authors' code, and against a slow twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer
from support.models import AudioVisual, Multimodal, SumFusion
from support.reference import lfm
from support.training import assert_close, balanced, batches, multimodal, sgd, train
from support.trajectories import Trajectory

OWN_HEADS = {"audio": "fusion_module.fc_x", "visual": "fusion_module.fc_y"}


@pytest.mark.parametrize("name", ["lfm_fitted", "lfm_gain", "lfm_learned"])
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    meta = recorded.meta
    model = AudioVisual(SumFusion)
    recorded.start(model)
    options: dict[str, Any] = {}
    if meta["learned"]:
        held_out = recorded.part("probe/")
        probe = [held_out[key] for key in ("audio", "visual", "target")]
        options = {"alpha": "learned", "alpha_lr": meta["lr_alpha"], "alpha_start": meta["alpha0"][1], "probe": probe}
    optimizer = BalancedOptimizer(
        SGD(model.parameters(), lr=meta["lr"], momentum=meta["momentum"], weight_decay=meta["weight_decay"]),
        "lfm",
        model=model,
        modalities={"audio": "audio_net", "visual": "visual_net"},
        fusion="fusion_module",
        unimodal=OWN_HEADS,
        **options,
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    data = [*recorded.batches(torch.float32)]
    for index, (epoch, (_, a1)) in enumerate(zip(meta["epochs_at"], meta["alpha"], strict=True)):
        optimizer.epoch = epoch
        train(model, optimizer, data, criterion)
        assert optimizer.metrics()["lfm/weight"] == pytest.approx(a1, abs=1e-6)
        if meta["learned"]:
            assert optimizer.metrics()["lfm/gradient"] == pytest.approx(meta["alpha_grad"][index], rel=1e-4)
    assert recorded.error(model) <= 1e-6


def twin_of(model: Multimodal, fused: str, **options: Any) -> lfm.Twin:
    def features(*inputs: Tensor) -> list[Tensor]:
        return [phi(x) for phi, x in zip(model.encoders.values(), inputs, strict=True)]

    def unimodal(*inputs: Tensor) -> list[Tensor]:
        z, head = features(*inputs), model.fusion.get_submodule("fc_out")
        weight, bias = head.get_parameter("weight"), head.get_parameter("bias")
        return [z_u @ w.T + bias / len(z) for z_u, w in zip(z, weight.chunk(len(z), 1), strict=True)]

    def logits(o: list[Tensor], inputs: Any) -> Tensor:
        return torch.stack(o).mean(0) if fused == "mean" else model(*inputs)

    return lfm.Twin(model=model, unimodal=unimodal, fused=logits, inner=sgd(model), **options)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize(
    ("fused", "divergence", "pairs"), [("mean", "reversed", "sum"), ("model", "js", "mean"), ("mean", "js", "sum")]
)
@pytest.mark.parametrize("alpha", ["fitted", "heuristic", "learned"])
def test_the_method_equals_the_twin(names: str, fused: str, divergence: str, pairs: str, alpha: str) -> None:
    ours, theirs = (multimodal(names, dtype=torch.float64) for _ in range(2))
    data = batches(ours, 2, 5, dtype=torch.float64)
    inputs, y = batches(ours, 1, 7, seed=9, dtype=torch.float64)[0]
    options: dict[str, Any] = {"divergence": divergence, "pairs": pairs}
    own: dict[str, Any] = {"alpha_lr": 0.5, "alpha_start": 0.6, "probe": [*inputs, y]} if alpha == "learned" else {}
    optimizer = balanced(ours, "lfm", fused=fused, alpha=alpha, **options, **own)
    twin = twin_of(theirs, fused, factor=1.0 if alpha == "heuristic" else 2.0, a1=0.6, rate=0.5, **options)
    for epoch in (0, 1, 20, 40):
        optimizer.epoch = epoch
        train(ours, optimizer, data)
        if alpha == "learned":
            twin.update(epoch, inputs, y, next(theirs.encoders["a"].parameters()))
        else:
            twin.a1 = lfm.fitted(epoch) if alpha == "fitted" else lfm.heuristic(epoch, 0.3)
        for batch in data:
            twin.step(*batch)
        if alpha == "learned":
            a1 = optimizer.state_dict()["modbalance"]["methods"]["lfm"]["a1"].item()
            assert a1 != 0.6
            assert a1 == pytest.approx(twin.a1, abs=1e-10)
    assert_close(ours, theirs, 1e-10)
