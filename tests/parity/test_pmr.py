"""PMR against runs of the authors' code, and against a slow twin in the paper's notation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from modbalance import BalancedOptimizer
from support.encoders import mixed
from support.models import HEADS, AudioVisual, ConcatFusion, Multimodal
from support.recorded import FUSIONS
from support.reference.pmr import Twin
from support.training import Batch, assert_close, batches, multimodal, sgd, train
from support.trajectories import Trajectory

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40, phases=[Phase.generate, Phase.shrink])
RUNS = ["pmr_concat", "pmr_sum", "pmr_window"]


def start(name: str) -> tuple[Trajectory, AudioVisual, SGD, dict[str, Any]]:
    recorded = Trajectory(name)
    meta = recorded.meta
    model = AudioVisual(ConcatFusion if meta["fusion"] == "concat" else FUSIONS[meta["fusion"]])
    recorded.start(model)
    options = {"alpha": meta["alpha"], "momentum": meta["momentum_coef"]}
    window = {"start_epoch": meta["starts"], "end_epoch": meta["ends"]}
    return recorded, model, SGD(model.parameters(), lr=meta["lr"], momentum=0.9, weight_decay=1e-4), options | window


def loader_of(data: Sequence[Batch]) -> list[tuple[Tensor, ...]]:
    return [(*inputs, target) for inputs, target in data]


@pytest.mark.parametrize("name", RUNS)
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded, model, inner, options = start(name)
    modalities = {"audio": "audio_net", "visual": "visual_net"}
    optimizer = BalancedOptimizer(inner, "pmr", model=model, modalities=modalities, fusion="fusion_module", **options)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    data = [*recorded.batches(torch.float32)]
    optimizer.begin(train=loader_of(data))
    if options["start_epoch"] == 0:
        assert_prototypes(optimizer, recorded, "proto_init")
    for epoch in range(recorded.meta["epochs"]):
        for index, batch in enumerate(data):
            train(model, optimizer, [batch], criterion)
            if options["start_epoch"] <= epoch <= options["end_epoch"]:
                found = optimizer.metrics()
                ratio = found["pmr/score/audio"] / found["pmr/score/visual"]
                expected = recorded.meta["ratio"][epoch * len(data) + index]
                assert ratio == pytest.approx(expected, abs=2e-6)
                assert [found["pmr/active/audio"], found["pmr/active/visual"]] == [expected < 1, expected > 1]
        optimizer.end_epoch(train=loader_of(data))
    assert recorded.error(model) <= 1e-6
    if options["end_epoch"] >= recorded.meta["epochs"]:
        assert_prototypes(optimizer, recorded, "proto_final")


def assert_prototypes(optimizer: BalancedOptimizer, recorded: Trajectory, of: str) -> None:
    ours = optimizer.state_dict()["modbalance"]["methods"]["pmr"]["prototypes"]
    for name, expected in recorded.part(f"{of}/").items():
        torch.testing.assert_close(ours[name], expected, atol=2e-6, rtol=1e-6)


def twin_of(model: nn.Module, inner: Any, classes: int, **options: Any) -> Twin:
    if isinstance(model, Multimodal):
        encoders = [*model.encoders.values()]
        return Twin(
            model=model,
            encode=lambda *x: [phi(x_u) for phi, x_u in zip(encoders, x, strict=True)],
            fusion=model.fusion,
            inner=inner,
            classes=classes,
            **options,
        )
    assert isinstance(model, AudioVisual)

    def encode(audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [model.audio_net(audio.unsqueeze(1)).mean((2, 3)), model.visual_net(visual).mean((1, 3, 4))]

    return Twin(model=model, encode=encode, fusion=model.fusion_module, inner=inner, classes=classes, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_twin_equals_the_authors_code(name: str) -> None:
    recorded, model, inner, options = start(name)
    twin = twin_of(model, inner, 6, **options)
    data = [*recorded.batches(torch.float32)]
    twin.renew(data)
    for _ in range(recorded.meta["epochs"]):
        for inputs, y in data:
            twin.step(inputs, y)
        twin.end_epoch_with(data)
    assert recorded.error(model) <= 1e-6


def with_missing_classes(data: list[Batch]) -> list[Batch]:
    """Return batches the first of which lacks the last class, so that prototypes of it come late or never."""
    (inputs, target), *others = data
    return [(inputs, target.clamp(max=1)), *others]


@pytest.mark.slow
@SETTINGS
@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    head=st.sampled_from(sorted(HEADS)),
    size=st.integers(2, 5),
    alpha=st.sampled_from([0.5, 2.0]),
    momentum=st.sampled_from([0.0, 0.3]),
    fraction=st.sampled_from([0.1, 0.5, 1.0]),
    coefficient=st.sampled_from(["binary", "clip"]),
    window=st.sampled_from([(0, 100), (1, 1), (0, 0), (2, 100)]),
    begins=st.booleans(),
)
def test_the_method_equals_the_twin(
    names: str, head: str, size: int, window: tuple[int, int], begins: bool, **options: Any
) -> None:
    ours, theirs = (mixed(names, ["layer norm"] * len(names), head, dtype=torch.float64) for _ in range(2))
    data = with_missing_classes(batches(ours, 4, size, dtype=torch.float64))
    options |= {"start_epoch": window[0], "end_epoch": window[1]}
    optimizer = BalancedOptimizer(sgd(ours), "pmr", model=ours, modalities=ours.paths, fusion="fusion", **options)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    twin = twin_of(theirs, sgd(theirs), 3, **options)
    if begins or not window[0]:
        optimizer.begin(train=loader_of(data))
        if not window[0]:
            twin.renew(data)
    for _ in range(3):
        train(ours, optimizer, data, criterion)
        optimizer.end_epoch(train=loader_of(data))
        for inputs, y in data:
            twin.step(inputs, y)
        twin.end_epoch_with(data)
    assert_close(ours, theirs, 1e-10)


class Pairs:
    """A loader for the twin: inputs, and the target."""

    def __init__(self, loader: DataLoader[tuple[Tensor, ...]]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for *inputs, target in self.loader:
            yield tuple(inputs), target


@pytest.mark.parametrize("window", [(0, 100), (0, 0), (0, 1), (1, 1), (2, 100)])
def test_a_loader_that_shuffles_yields_the_batches_of_the_authors_loop(window: tuple[int, int]) -> None:
    """The code draws for prototypes before the training and after each epoch, in the window and outside of it."""
    ours, theirs = (multimodal(dtype=torch.float64) for _ in range(2))
    (inputs, target), *_ = batches(ours, 1, 40, dtype=torch.float64)
    loader = DataLoader(TensorDataset(*inputs, target), 8, shuffle=True)
    options: dict[str, Any] = {"start_epoch": window[0], "end_epoch": window[1], "fraction": 0.5}

    optimizer = BalancedOptimizer(sgd(ours), "pmr", model=ours, modalities=ours.paths, fusion="fusion", **options)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    torch.manual_seed(0)
    optimizer.begin(train=loader)
    for _ in range(4):
        train(ours, optimizer, Pairs(loader), criterion)
        optimizer.end_epoch(train=loader)

    twin = twin_of(theirs, sgd(theirs), 3, **options)
    torch.manual_seed(0)
    twin.renew(Pairs(loader))
    for _ in range(4):
        for batch in Pairs(loader):
            twin.step(*batch)
        twin.end_epoch_with(Pairs(loader))
    assert_close(ours, theirs, 1e-10)
