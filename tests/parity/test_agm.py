"""AGM against runs of the authors' code (`tests/data/trajectories/README.md`), and against its plain twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer
from support.encoders import ENCODERS, mixed
from support.models import HEADS, ConcatFusion
from support.reference.agm import Twin, shapley_weights
from support.training import assert_close, audio_visual, balanced, batches, sgd, train
from support.trajectories import Trajectory


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 2)

    def forward(self, *features: Tensor) -> Tensor:
        return self.fc(torch.cat(features, 1))


class Three(nn.Module):
    """The model of `agm_three`: visual (B, 5, 5), audio (B, 5, 4), text (B, 5, 6) -> logits (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_net, self.audio_net, self.text_net = (self.encoder(size) for size in (5, 4, 6))
        self.head = Head()

    @staticmethod
    def encoder(size: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(size, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, visual: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        features = [self.visual_net(visual.mean(1)), self.audio_net(audio.mean(1)), self.text_net(text.mean(1))]
        return self.head(*features)


CASES: dict[str, dict[str, Any]] = {
    "agm_one_epoch": {},
    "agm_two_epochs": {},
    "agm_clip": {},
    "agm_window_end": {"start_epoch": 0, "end_epoch": 0, "after_window": "freeze"},
    "agm_three": {"max_gap": 7, "p_min": 0.0, "clip_trigger": 5.0, "clip_norm": 5.0},
}


def run(name: str, **options: Any) -> tuple[Trajectory, nn.Module, BalancedOptimizer]:
    recorded = Trajectory(name)
    modalities = ("visual", "audio", "text") if name == "agm_three" else ("audio", "visual")
    model = Three() if name == "agm_three" else audio_visual(ConcatFusion)
    recorded.start(model)
    lr = recorded.meta.get("lr", 0.05)
    optimizer = BalancedOptimizer(
        SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4),
        "agm",
        model=model,
        modalities={each: f"{each}_net" for each in modalities},
        fusion="head" if name == "agm_three" else "fusion_module",
        alpha=recorded.meta["alpha"],
        **(CASES[name] | options),
    )
    for _ in range(recorded.meta.get("epochs", 1)):
        train(model, optimizer, recorded.batches(torch.float32, modalities))
        optimizer.end_epoch()
    return recorded, model, optimizer


@pytest.mark.parametrize("coalitions", ["auto", "factored", "full"])
@pytest.mark.parametrize("name", CASES)
def test_trajectory_of_the_authors_code(name: str, coalitions: str) -> None:
    recorded, model, optimizer = run(name, coalitions=coalitions)
    ours = optimizer.state_dict()["modbalance"]["methods"]["agm"]["mean_score"].tolist()

    assert recorded.error(model) <= 1e-6
    assert ours == pytest.approx(recorded.meta.get("scores") or recorded.meta["returned"], abs=1e-6)


SETTINGS = settings(deadline=None, derandomize=True, max_examples=40, phases=[Phase.generate, Phase.shrink])
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "alpha": st.sampled_from([0.3, 1.0, 2.5]),
    "max_gap": st.sampled_from([None, 0.05, 10.0]),
    "p_min": st.sampled_from([0.0, 1e-8, 0.3]),
    "include_current": st.booleans(),
    "masked_pass_grad": st.booleans(),
    "clip_trigger": st.sampled_from([None, 0.02, 1.0]),
    "clip_norm": st.sampled_from([0.1, 1.0]),
    "after_window": st.sampled_from(["reset", "freeze"]),
}
WINDOWS = st.sampled_from([(0, 19), (0, None), (1, 1), (0, 0), (2, 2)])
KINDS = st.lists(st.sampled_from(sorted(ENCODERS)), min_size=4, max_size=4)


def agree(
    names: str, kinds: list[str], head: str, coalitions: str, options: dict[str, Any], micro: int = 1, epochs: int = 3
) -> tuple[BalancedOptimizer, Twin]:
    """Train plugin and twin for some epochs of two steps, and assert that weights, buffers and averages are equal."""
    ours, theirs = (mixed(names, kinds, head) for _ in range(2))
    optimizer = balanced(ours, "agm", coalitions=coalitions, **options)
    last = list(theirs.fusion.parameters())[-2]
    rows = [p for p in theirs.fusion.parameters() if p.dim() >= 2 and len(p) == len(last)]
    twin = Twin(model=theirs, head=rows, inner=sgd(theirs), modalities=len(names), **options)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    data = batches(ours, 2 * micro, size=4, dtype=torch.float64)
    steps = [data[:micro], data[micro:]]
    for epoch in range(epochs):
        twin.epoch = epoch
        for parts in steps:
            optimizer.zero_grad()
            seed = torch.random.get_rng_state()
            for inputs, y in parts:
                (criterion(ours(*inputs), y) / micro).backward()
            optimizer.step()
            after = torch.random.get_rng_state()
            torch.random.set_rng_state(seed)
            twin.step(parts)
            assert torch.equal(after, torch.random.get_rng_state())
        optimizer.end_epoch()
    assert_close(ours, theirs, 1e-12)
    return optimizer, twin


@pytest.mark.slow
@SETTINGS
@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    kinds=KINDS,
    head=st.sampled_from(sorted(HEADS)),
    coalitions=st.sampled_from(["auto", "factored", "full"]),
    window=WINDOWS,
    options=st.fixed_dictionaries(OPTIONS),
)
def test_plugin_equals_its_twin(
    names: str, kinds: list[str], head: str, coalitions: str, window: tuple[int, int | None], options: dict[str, Any]
) -> None:
    start, end = window
    optimizer, twin = agree(names, kinds, head, coalitions, options | {"start_epoch": start, "end_epoch": end})
    state = optimizer.state_dict()["modbalance"]["methods"]["agm"]
    if end is None or end >= 2 or options["after_window"] == "freeze":
        assert state["mean_score"].tolist() == pytest.approx(twin.S, abs=1e-12)
        assert state["score_steps"].item() == twin.t == 6


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("masked_pass_grad", [True, False])
def test_masked_passes_in_training_mode_equal_the_twin(head: str, masked_pass_grad: bool) -> None:
    options = {"masked_mode": "train", "masked_pass_grad": masked_pass_grad}
    agree("abc", ["batch norm", "dropout", "transformer"], head, "auto", options)


@pytest.mark.parametrize("coalitions", ["auto", "factored"])
@pytest.mark.parametrize("options", [{}, {"masked_pass_grad": False}, {"start_epoch": 1, "clip_trigger": 0.02}])
def test_encoders_without_a_mode_equal_the_twin(coalitions: str, options: dict[str, Any]) -> None:
    agree("abc", ["layer norm"] * 3, "mlp", coalitions, options)


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_presets_equal_the_twin(preset: str) -> None:
    paper: dict[str, Any] = {"max_gap": None, "p_min": 0.0, "include_current": True, "clip_trigger": None}
    ours, theirs = (mixed("ab", ["batch norm", "transformer"]) for _ in range(2))
    optimizer = balanced(ours, "agm", preset=preset)
    head = [theirs.get_parameter("fusion.fc_out.weight")]
    options = paper if preset == "paper" else {}
    twin = Twin(model=theirs, head=head, inner=sgd(theirs), modalities=2, **options)
    for inputs, y in batches(ours, 4, dtype=torch.float64):
        seed = torch.random.get_rng_state()
        train(ours, optimizer, [(inputs, y)])
        torch.random.set_rng_state(seed)
        twin.step([(inputs, y)])
    assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("micro", [2, 3])
@pytest.mark.parametrize("after_window", ["reset", "freeze"])
def test_micro_batches_have_a_scale_each_and_one_score(micro: int, after_window: str) -> None:
    options = {"end_epoch": 0, "after_window": after_window, "clip_trigger": 0.02}
    agree("ab", ["layer norm", "dropout"], "concat", "factored", options, micro)


@pytest.mark.parametrize("name", CASES)
def test_twin_equals_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    modalities = ("visual", "audio", "text") if name == "agm_three" else ("audio", "visual")
    model: nn.Module = Three() if name == "agm_three" else audio_visual(ConcatFusion)
    recorded.start(model)
    twin = Twin(
        model=model,
        head=[model.get_parameter("head.fc.weight" if name == "agm_three" else "fusion_module.fc_out.weight")],
        inner=SGD(model.parameters(), lr=recorded.meta.get("lr", 0.05), momentum=0.9, weight_decay=1e-4),
        modalities=len(modalities),
        alpha=recorded.meta["alpha"],
        **CASES[name],
    )
    for _ in range(recorded.meta.get("epochs", 1)):
        for batch in recorded.batches(torch.float32, modalities):
            twin.step([batch])
        twin.epoch += 1
    assert recorded.error(model) <= 1e-6
    assert pytest.approx(recorded.meta.get("scores") or recorded.meta["returned"], abs=1e-6) == twin.S


def test_weights_of_three_modalities_are_those_of_the_authors_code() -> None:
    third, sixth = 1 / 3, 1 / 6
    for i, weights in enumerate(shapley_weights(3)):
        for S, weight in weights.items():
            is_in = i in S
            expected = {0: 0.0, 1: third if is_in else -sixth, 2: sixth if is_in else -third, 3: third}[len(S)]
            assert weight == pytest.approx(expected, abs=1e-15)
