"""MSLR against a run of the authors' code, MSLR and MSES against slow twins."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer
from support.encoders import ENCODERS, mixed
from support.models import FrameEncoder, Multimodal, conv_encoder
from support.optimizers import INNER, wrap
from support.reference.mslr import MSESTwin, MSLRTwin
from support.training import assert_close, assert_same, batches, train
from support.trajectories import Trajectory

SETTINGS = settings(deadline=None, derandomize=True, max_examples=20, phases=[Phase.generate, Phase.shrink])


class OwnHeads(nn.Module):
    """The recorded model: a classifier per modality, logits summed, no fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net, self.visual_net = conv_encoder(1), FrameEncoder()
        self.audio_cls, self.visual_cls = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        heard = self.audio_net(audio.unsqueeze(1)).mean((2, 3))
        seen = self.visual_net(visual).mean((1, 3, 4))
        return self.audio_cls(heard) + self.visual_cls(seen)


PARTS = {"audio": ["audio_net", "audio_cls"], "visual": ["visual_net", "visual_cls"]}
# Six epochs that end with the recorded ratios: 0.4 / 0.5 = 0.8, 0.5 / 0.4 = 1.25.
ACCURACIES = [{"audio": 0.5, "visual": 0.4}] * 5 + [{"audio": 0.4, "visual": 0.5}]


def recorded_start() -> tuple[Trajectory, OwnHeads, SGD]:
    recorded, model = Trajectory("mslr_sum"), OwnHeads()
    recorded.start(model)
    return recorded, model, SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def test_trajectory_of_the_authors_code() -> None:
    recorded, model, inner = recorded_start()
    optimizer = BalancedOptimizer(inner, "mslr", model=model, modalities=PARTS, init={"audio": 0.9, "visual": 1.1})
    for accuracies in ACCURACIES:
        optimizer.end_epoch(metrics={"accuracy": accuracies})

    train(model, optimizer, recorded.batches(torch.float32))

    assert recorded.error(model) <= 1e-6


def test_twin_equals_the_authors_code() -> None:
    recorded, model, inner = recorded_start()
    encoders = [nn.ModuleList([getattr(model, part) for part in parts]) for parts in PARTS.values()]
    twin = MSLRTwin(model=model, encoders=encoders, inner=inner, init=[0.9, 1.1])
    for accuracies in ACCURACIES:
        twin.end_epoch_with(list(accuracies.values()))

    for inputs, y in recorded.batches(torch.float32):
        twin.step(inputs, y)

    assert recorded.error(model) <= 1e-6


def test_without_the_ratios_the_recorded_run_ends_elsewhere() -> None:
    recorded, model, inner = recorded_start()
    optimizer = BalancedOptimizer(inner, "mslr", model=model, modalities=PARTS, init={"audio": 0.9, "visual": 1.1})
    train(model, optimizer, recorded.batches(torch.float32))
    assert recorded.error(model) > 1e-4


# MSLR against its twin


def doubles(kinds: list[str], head: str = "concat") -> Multimodal:
    return mixed("abcd"[: len(kinds)], kinds, head, dtype=torch.float64)


def grouped(model: Multimodal, name: str) -> Any:
    """Return an inner optimizer with a group for each encoder, and one for the fusion."""
    parts = [*model.encoders.values(), model.fusion]
    return INNER[name]([{"params": list(part.parameters())} for part in parts])


KINDS = st.lists(st.sampled_from(sorted(ENCODERS)), min_size=2, max_size=4)
ACCURACY = st.sampled_from([0.2, 0.25, 0.4, 0.7, 1.0])


@pytest.mark.slow
@SETTINGS
@given(
    data=st.data(),
    kinds=KINDS,
    head=st.sampled_from(["concat", "film", "attention"]),
    inner=st.sampled_from(["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"]),
    mode=st.sampled_from(["grad", "lr"]),
    memory=st.integers(1, 3),
    window=st.sampled_from([(0, 19), (0, None), (2, 4), (3, 3)]),
)
def test_mslr_equals_its_twin(
    data: st.DataObject,
    kinds: list[str],
    head: str,
    inner: str,
    mode: str,
    memory: int,
    window: tuple[int, int | None],
) -> None:
    if mode == "lr":
        # Adam and its kin divide gradients that are 0 but for rounding by their own size, and updates are rounded
        # otherwise here: keep to encoders and heads without biases that cannot matter.
        kinds = ["dropout" if kind == "dropout" else "layer norm" for kind in kinds]
        head = "concat" if head == "attention" else head
    ours, theirs = doubles(kinds, head), doubles(kinds, head)
    names, (start, end) = list(ours.encoders), window
    init = {name: 0.5 + 0.3 * u for u, name in enumerate(names)}
    optimizer = wrap(ours, inner, "mslr", mode=mode, memory=memory, init=init, start_epoch=start, end_epoch=end)
    twin = MSLRTwin(
        model=theirs,
        encoders=list(theirs.encoders.values()),
        inner=grouped(theirs, inner),
        init=list(init.values()),
        memory=memory,
        mode=mode,
        start_epoch=start,
        end_epoch=math.inf if end is None else end,
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for batch in batches(ours, 6, 3, dtype=torch.float64):
        accuracies = [data.draw(ACCURACY) for _ in names]
        torch.manual_seed(0)
        train(ours, optimizer, [batch], criterion)
        optimizer.end_epoch(metrics={"accuracy": dict(zip(names, accuracies, strict=True))})
        torch.manual_seed(0)
        twin.step(*batch)
        twin.end_epoch_with(accuracies)

    assert_close(ours, theirs, 1e-12)


@pytest.mark.slow
@SETTINGS
@given(modalities=st.integers(2, 4), micro=st.integers(2, 4), mode=st.sampled_from(["grad", "lr"]))
def test_micro_batches_equal_the_twin_and_the_whole_batch(modalities: int, micro: int, mode: str) -> None:
    kinds = ["layer norm"] * modalities
    ours, theirs, whole = (doubles(kinds) for _ in range(3))
    init = {name: 0.5 + 0.3 * u for u, name in enumerate(ours.encoders)}
    optimizer, other = (wrap(model, "SGD", "mslr", mode=mode, init=init) for model in (ours, whole))
    twin = MSLRTwin(
        model=theirs,
        encoders=list(theirs.encoders.values()),
        inner=grouped(theirs, "SGD"),
        init=list(init.values()),
        mode=mode,
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for inputs, target in (data := batches(ours, 3, 2 * micro, dtype=torch.float64)):
        optimizer.zero_grad()
        for *xs, y in zip(*(x.chunk(micro) for x in (*inputs, target)), strict=True):
            (criterion(ours(*xs), y) / micro).backward()
        optimizer.step()
        twin.step(inputs, target, micro)

    assert_close(ours, theirs, 1e-12)
    assert_close(ours, train(whole, other, data), 1e-12)


def test_the_first_ratio_is_used_in_the_seventh_epoch() -> None:
    model = doubles(["layer norm", "layer norm"])
    optimizer = wrap(model, "SGD", "mslr")
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    seen = []
    for epoch in range(8):
        train(model, optimizer, batches(model, 1, dtype=torch.float64), criterion)
        seen.append(optimizer.metrics()["mslr/coefficient/a"])
        optimizer.end_epoch(metrics={"accuracy": {"a": 0.1 * (epoch + 1), "b": 0.5}})
    assert seen[:6] == [1.0] * 6
    assert seen[6:] == pytest.approx([0.6 / 0.3, 0.7 / 0.4])


# MSES against its twin, which keeps every copy


@pytest.mark.slow
@SETTINGS
@given(
    data=st.data(),
    kinds=KINDS,
    inner=st.sampled_from(["SGD", "Adam", "RMSprop"]),
    patience=st.integers(0, 3),
    freeze=st.sampled_from(["official", "hard"]),
    rewind=st.sampled_from(["all", "modality", "none"]),
)
def test_mses_equals_its_twin_bit_for_bit(
    data: st.DataObject, kinds: list[str], inner: str, patience: int, freeze: str, rewind: str
) -> None:
    ours, theirs = doubles(kinds), doubles(kinds)
    names = list(ours.encoders)
    optimizer = wrap(ours, inner, "mses", patience=patience, freeze=freeze, rewind=rewind)
    twin = MSESTwin(
        model=theirs,
        encoders=list(theirs.encoders.values()),
        inner=INNER[inner](theirs.parameters()),
        patience=patience,
        freeze=freeze,
        rewind=rewind,
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for batch in batches(ours, 10, 3, dtype=torch.float64):
        losses = [data.draw(st.integers(0, 4)) / 4 for _ in names]
        torch.manual_seed(0)
        train(ours, optimizer, [batch], criterion)
        optimizer.end_epoch(metrics={"loss": dict(zip(names, losses, strict=True))})
        torch.manual_seed(0)
        twin.step(*batch)
        twin.end_epoch_with(losses)

        assert_same(ours, theirs)
        assert optimizer.should_stop is twin.should_stop
