"""Diagnosing & Re-learning against a run of the authors' code, and against a slow twin in the paper's notation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from support.models import HEADS, Multimodal
from support.reference import relearning
from support.reference.relearning import Twin
from support.training import Batch, assert_close, audio_visual, balanced, batches, multimodal, sgd, train
from support.trajectories import Trajectory

SETTINGS = settings(deadline=None, derandomize=True, max_examples=25, phases=[Phase.generate, Phase.shrink])


def from_features(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    audio, visual, target = batch
    return model.get_submodule("fusion_module")(audio, visual), target


def recorded_features(recorded: Trajectory, split: str) -> list[Tensor]:
    features = recorded.part("features/")
    return [features[f"{split}_{name}"] for name in ("audio", "visual", "label")]


def test_blend_of_the_authors_code() -> None:
    recorded = Trajectory("relearn")
    model = audio_visual()
    recorded.start(model)
    optimizer = balanced(model, "relearning", n_init=1, canonical_order=False)
    model.load_state_dict(recorded.part("current/"))
    optimizer.epoch = 20

    train_rows, val_rows = ([recorded_features(recorded, split)] for split in ("train", "val"))
    optimizer.end_epoch(train=train_rows, val=val_rows, forward=from_features)

    metrics = optimizer.metrics()
    for name in ("audio", "visual"):
        assert metrics[f"relearning/weight/{name}"] == pytest.approx(recorded.meta[f"weight_{name}"], rel=0, abs=1e-12)
    assert recorded.error(model) <= 1e-6


def test_the_recorded_weights_depend_on_the_order_of_rows() -> None:
    recorded = Trajectory("relearn")
    of_order = {}
    for canonical in (False, True):
        for shuffled in (False, True):
            model = audio_visual()
            optimizer = balanced(model, "relearning", n_init=1, canonical_order=canonical)
            optimizer.epoch = 20
            audio, visual, label = recorded_features(recorded, "train")
            order = torch.randperm(len(label)) if shuffled else torch.arange(len(label))
            val = recorded_features(recorded, "val")
            optimizer.end_epoch(train=[[audio[order], visual[order], label[order]]], val=[val], forward=from_features)
            of_order[canonical, shuffled] = optimizer.metrics()
    assert of_order[True, True] == of_order[True, False]
    assert of_order[False, True] != of_order[False, False]


@pytest.mark.parametrize("name", ["audio", "visual"])
def test_twin_equals_the_authors_code(name: str) -> None:
    recorded = Trajectory("relearn")
    features = recorded.part("features/")
    p_train, p_val = (
        relearning.purity(features[f"{split}_{name}"].tolist(), features[f"{split}_label"].tolist(), 6, 1, False)
        for split in ("train", "val")
    )
    assert relearning.blend_weight(p_train, p_val, 3.0) == pytest.approx(recorded.meta[f"weight_{name}"], abs=1e-12)


class TokenEncoder(nn.Module):
    """A transformer over the five entries of its input, with dropout: (B, 5) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embed(x.unsqueeze(-1))).mean(1)


def encoder(kind: str) -> nn.Module:
    layers: dict[str, list[nn.Module]] = {
        "plain": [],
        "batchnorm": [nn.BatchNorm1d(4)],
        "layernorm": [nn.LayerNorm(4)],
        "dropout": [nn.Dropout(0.3)],
    }
    if kind == "transformer":
        return TokenEncoder()
    return nn.Sequential(nn.Linear(5, 4), *layers[kind], nn.Tanh(), nn.Linear(4, 4))


def model_of(names: str, head: str, kind: str) -> Multimodal:
    model = multimodal(names, head, dtype=torch.float64)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        for name in names:
            model.encoders[name] = encoder(kind).double()
    return model


def data_for(names: str, count: int, seed: int) -> list[Batch]:
    return batches(multimodal(names), count, 6, seed, torch.float64)


def trained(model: Multimodal, optimizer: Any, twin: Twin | None, names: str, epochs: int) -> Multimodal:
    torch.manual_seed(5)
    val = data_for(names, 2, seed=2)
    for epoch in range(epochs):
        data = data_for(names, 3, seed=10 + epoch % 2)
        train(model, optimizer, data)
        if twin is None:
            optimizer.end_epoch(train=as_loader(data), val=as_loader(val))
        else:
            twin.end_epoch(data, val)
    return model


def as_loader(data: list[Batch]) -> list[tuple[Tensor, ...]]:
    return [(*inputs, target) for inputs, target in data]


@pytest.mark.slow
@SETTINGS
@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    head=st.sampled_from(sorted(HEADS)),
    kind=st.sampled_from(["plain", "batchnorm", "layernorm", "dropout", "transformer"]),
    lam=st.sampled_from([0.5, 3.0, 20.0]),
    schedule=st.sampled_from([(1, 2), (2, 1), (2, 3), (3, 3)]),
    n_init=st.sampled_from([1, 3]),
    canonical=st.booleans(),
)
def test_plugin_equals_its_twin(
    names: str, head: str, kind: str, lam: float, schedule: tuple[int, int], n_init: int, canonical: bool
) -> None:
    period, count = schedule
    ours, theirs = (model_of(names, head, kind) for _ in range(2))
    options: dict[str, Any] = {
        "lam": lam,
        "period": period,
        "count": count,
        "n_init": n_init,
        "canonical_order": canonical,
    }
    optimizer = balanced(ours, "relearning", inner=sgd(ours), **options)
    encoders = [theirs.encoders[name] for name in names]
    twin = Twin(
        theirs,
        encoders,
        lambda *inputs: [phi(x) for phi, x in zip(encoders, inputs, strict=True)],
        k=3,
        lam=lam,
        period=period,
        count=count,
        n_init=n_init,
        is_sorted=canonical,
    )
    epochs = 5
    trained(ours, optimizer, None, names, epochs)
    trained(theirs, sgd(theirs), twin, names, epochs)
    assert twin.done == min(count, (epochs - 1) // period)
    metrics = optimizer.metrics()
    weights = [metrics[f"relearning/weight/{name}"] for name in names]
    assert weights == pytest.approx(twin.alpha, rel=0, abs=1e-12)
    assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("kind", ["plain", "batchnorm", "transformer"])
def test_the_comparison_with_the_twin_sees_blends(kind: str) -> None:
    model, plain = (model_of("abcd", "concat", kind) for _ in range(2))
    trained(model, balanced(model, "relearning", inner=sgd(model), period=2), None, "abcd", 3)
    trained(plain, balanced(plain, "none", inner=sgd(plain)), None, "abcd", 3)
    pairs = zip(model.encoders.parameters(), plain.encoders.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) > 1e-3
