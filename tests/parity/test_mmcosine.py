"""MMCosine against runs of the authors' code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer
from support.encoders import mixed
from support.models import AudioVisual, ConcatFusion
from support.reference import mmcosine
from support.training import assert_close, balanced, batches, sgd, train
from support.trajectories import Trajectory


class Gated(nn.Module):
    """Each modality gates the other one; both parts enter the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_x, self.fc_y, self.fc_out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 6)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        u, v = self.fc_x(audio), self.fc_y(visual)
        return self.fc_out(torch.cat([v.sigmoid() * u, u.sigmoid() * v], -1))


@pytest.mark.parametrize("name", ["mmcosine_10", "mmcosine_3", "mmcosine_gated", "mmcosine_nce"])
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    meta = recorded.meta
    model = AudioVisual(Gated if meta["fusion"] == "gated" else ConcatFusion)
    recorded.start(model)
    inner = SGD(model.parameters(), lr=meta["lr"], momentum=meta["momentum"], weight_decay=meta["weight_decay"])
    optimizer = BalancedOptimizer(
        inner,
        "mmcosine",
        model=model,
        modalities={"audio": "audio_net", "visual": "visual_net"},
        fusion="fusion_module.fc_out",
        feature_sizes={"audio": 8, "visual": 8},
        scale=float(meta["scaling"]),
        nce=meta.get("lam", 0.0),
        eval_logits="cosine",
    )
    seen: list[Tensor] = []

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(logits)
        return nn.functional.cross_entropy(logits, target)

    criterion = optimizer.criterion(loss)
    data = [*recorded.batches(torch.float32)]
    for _ in range(meta.get("epochs", 1)):
        train(model, optimizer, data, criterion)
    assert recorded.error(model) <= 1e-6
    if expected := recorded.part("eval/"):
        model.eval()
        with torch.no_grad():
            linear = model(*data[0][0])
            criterion(linear, data[0][1])
        torch.testing.assert_close(linear, expected["linear"], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(seen[-1], expected["cosine"], atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
@pytest.mark.parametrize("options", [{}, {"scale": 3.0, "nce": 0.5, "nce_temperature": 0.2}])
def test_the_method_equals_the_twin(names: str, options: dict[str, Any]) -> None:
    ours, theirs = (mixed(names, ["layer norm"] * len(names), dtype=torch.float64) for _ in range(2))
    data = batches(ours, 4, 5, dtype=torch.float64)
    train(ours, balanced(ours, "mmcosine", **options), data)
    inner, head = sgd(theirs), theirs.fusion.get_submodule("fc_out")
    for inputs, y in data:
        inner.zero_grad()
        z = [phi(x_u) for phi, x_u in zip(theirs.encoders.values(), inputs, strict=True)]
        o = mmcosine.logits(z, head.get_parameter("weight"), options.get("scale", 10.0))
        loss = nn.functional.cross_entropy(torch.stack(o).sum(0), y)
        if "nce" in options:
            loss = loss + options["nce"] * mmcosine.nce(z, y, options["nce_temperature"])
        loss.backward()
        inner.step()
    assert_close(ours, theirs, 1e-10)
