"""DGL against runs of the authors' code, and bit for bit against a slow twin with two backwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD

from support.encoders import ENCODERS, mixed
from support.models import HEADS, GatedFusion, Multimodal, SumFusion
from support.recorded import FUSIONS, Concat, Gated, Recorded
from support.reference import dgl
from support.reference.dgl import Twin
from support.training import assert_close, assert_same, balanced, batches, sgd, train, weights
from support.trajectories import Trajectory

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40, phases=[Phase.generate, Phase.shrink])
OWN_HEADS = {"audio": "fusion_module.fc_x", "visual": "fusion_module.fc_y"}


RUNS = ["dgl_concat", "dgl_sum", "dgl_clip", "dgl_gated"]


@pytest.fixture
def recording_threads() -> Iterator[None]:
    # The run with large logits amplifies rounding: one thread, whose sums run in another order, ends 1e-5 away.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def start(name: str, nudge: int = 0) -> tuple[Trajectory, Recorded, SGD]:
    recorded = Trajectory(name)
    model = Recorded(FUSIONS[recorded.meta["fusion"]])
    recorded.start(model, nudge)
    return recorded, model, SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def unmoved(model: Recorded) -> set[str]:
    names = {"fc_auxi"} if isinstance(model.fusion_module, Concat) else set()
    names |= {"fc_x", "fc_y"} if isinstance(model.fusion_module, Gated) else set()
    return {f"fusion_module.{name}.{kind}" for name in names for kind in ("weight", "bias")}


@pytest.mark.parametrize("name", RUNS)
def test_trajectory_of_the_authors_code(name: str, recording_threads: None) -> None:
    before = weights(start(name)[1])

    def run(nudge: int = 0) -> Recorded:
        recorded, model, inner = start(name, nudge)
        arguments: dict[str, Any] = {}
        fusion = model.fusion_module
        if isinstance(fusion, SumFusion):
            arguments["unimodal"] = OWN_HEADS
        if isinstance(fusion, Gated):
            arguments["detach_at"] = "projected"
            arguments["unimodal"] = lambda z: dict(zip(z, fusion.alone([*z.values()]), strict=True))
        optimizer = balanced(model, "dgl", inner, alpha=recorded.meta["alpha"], **arguments)
        train(model, optimizer, recorded.batches(torch.float32))
        return model

    model, recorded = run(), Trajectory(name)
    assert recorded.error(model) <= recorded.limit(run)
    assert {name for name, p in model.named_parameters() if p.grad is None} == unmoved(model)
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == unmoved(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_twin_equals_the_authors_code(name: str, recording_threads: None) -> None:
    def run(nudge: int = 0) -> Recorded:
        recorded, model, inner = start(name, nudge)
        twin = Twin(**parts(model), inner=inner, alpha=recorded.meta["alpha"])
        for inputs, y in recorded.batches(torch.float32):
            twin.step(inputs, y)
        return model

    recorded = Trajectory(name)
    assert recorded.error(run()) <= recorded.limit(run)


def parts(model: Recorded) -> dict[str, Any]:
    """Return what the twin needs of the model."""
    fusion = model.fusion_module
    fused, unimodal = None, lambda z: dgl.zeroed(z, fusion)
    if isinstance(fusion, SumFusion):
        unimodal = lambda z: dgl.own(z, [fusion.fc_x, fusion.fc_y])  # noqa: E731
    if isinstance(fusion, Gated):
        fused, unimodal = fusion.cut, fusion.alone

    def encode(audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [model.audio_net(audio.unsqueeze(1)).mean((2, 3)), model.visual_net(visual).mean((1, 3, 4))]

    return {"fusion": fusion, "encode": encode, "unimodal": unimodal, "fused": fused}


def test_without_its_clip_the_recorded_run_ends_elsewhere() -> None:
    recorded, model, inner = start("dgl_clip")
    optimizer = balanced(model, "dgl", inner, clip_grad_norm=1e9)
    train(model, optimizer, recorded.batches(torch.float32))
    assert recorded.error(model) > 1


# Against the twin, whose arithmetic is that of two backwards, bit for bit


class SumOfHeads(nn.Module):
    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(modalities))

    def forward(self, *features: Tensor) -> Tensor:
        return torch.stack(dgl.own(features, list(self.heads))).sum(0)


def drawn(kinds: list[str], head: str, dtype: torch.dtype) -> Multimodal:
    if head != "sum":
        return mixed("abcd"[: len(kinds)], kinds, head, dtype=dtype)
    model = mixed("abcd"[: len(kinds)], kinds, dtype=dtype)
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        model.fusion = SumOfHeads(len(kinds)).to(dtype)
    return model


def twin_of(model: Multimodal, **options: Any) -> Twin:
    def encode(*inputs: Tensor) -> list[Tensor]:
        return [phi(x) for phi, x in zip(model.encoders.values(), inputs, strict=True)]

    def unimodal(z: list[Tensor]) -> list[Tensor]:
        fusion = model.fusion
        return dgl.own(z, list(fusion.heads)) if isinstance(fusion, SumOfHeads) else dgl.zeroed(z, fusion)

    return Twin(fusion=model.fusion, encode=encode, unimodal=unimodal, inner=sgd(model), **options)


def described(model: Multimodal) -> dict[str, Any]:
    if not isinstance(model.fusion, SumOfHeads):
        return {}
    return {"unimodal": {name: f"fusion.heads.{u}" for u, name in enumerate(model.encoders)}}


KINDS = st.lists(st.sampled_from(sorted(ENCODERS)), min_size=2, max_size=4)
ANY_HEAD = st.sampled_from([*sorted(HEADS), "sum"])


@pytest.mark.slow
@SETTINGS
@given(
    kinds=KINDS,
    head=ANY_HEAD,
    size=st.integers(2, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    alpha=st.sampled_from([0.5, 2.0, 4.0]),
    preset=st.sampled_from(["official", "paper"]),
    clip=st.sampled_from([None, 0.1]),
)
def test_one_backward_equals_two_bit_for_bit(
    kinds: list[str], head: str, size: int, dtype: torch.dtype, alpha: float, preset: str, clip: float | None
) -> None:
    ours, theirs = drawn(kinds, head, dtype), drawn(kinds, head, dtype)
    data = batches(ours, 3, size, dtype=dtype)
    optimizer = balanced(ours, "dgl", preset=preset, alpha=alpha, clip_grad_norm=clip, **described(ours))
    torch.manual_seed(0)
    train(ours, optimizer, data)

    twin = twin_of(theirs, alpha=alpha, clip=clip or {"official": 40.0, "paper": None}[preset])
    torch.manual_seed(0)
    for inputs, y in data:
        twin.step(inputs, y)

    if head == "attention":
        # Where weights are constants, torch folds the products of an attention otherwise, and rounds otherwise.
        assert_close(ours, theirs, 1e-12 if dtype == torch.float64 else 1e-6)
    else:
        assert_same(ours, theirs)


@pytest.mark.slow
@SETTINGS
@given(modalities=st.integers(2, 4), head=ANY_HEAD, micro=st.integers(2, 4))
def test_micro_batches_equal_the_twin_and_the_whole_batch(modalities: int, head: str, micro: int) -> None:
    kinds = ["layer norm"] * modalities
    ours, theirs, whole = (drawn(kinds, head, torch.float64) for _ in range(3))
    data = batches(ours, 3, 2 * micro, dtype=torch.float64)
    optimizer = balanced(ours, "dgl", **described(ours))
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    twin = twin_of(theirs)
    for inputs, target in data:
        optimizer.zero_grad()
        for *xs, y in zip(*(x.chunk(micro) for x in (*inputs, target)), strict=True):
            (criterion(ours(*xs), y) / micro).backward()
        optimizer.step()
        twin.step(inputs, target, micro)

    assert_close(ours, theirs, 1e-12)
    assert_close(ours, train(whole, balanced(whole, "dgl", **described(whole)), data), 1e-12)


@pytest.mark.slow
@SETTINGS
@given(modalities=st.integers(2, 4), size=st.integers(1, 5))
def test_a_cut_behind_the_projections_equals_the_twin(modalities: int, size: int) -> None:
    kinds = ["layer norm"] * modalities
    ours, theirs = (drawn(kinds, "gated", torch.float64) for _ in range(2))
    data = batches(ours, 3, size, dtype=torch.float64)
    train(ours, balanced(ours, "dgl", detach_at="projected"), data)

    gate = theirs.fusion
    assert isinstance(gate, GatedFusion)

    def cut(z: list[Tensor]) -> Tensor:
        first, *others = [project(z_u).detach() for project, z_u in zip(gate.projections, z, strict=True)]
        return gate.out(first.sigmoid() * sum(others))

    twin = twin_of(theirs, fused=cut)
    for inputs, y in data:
        twin.step(inputs, y)

    assert_same(ours, theirs)
    start = drawn(kinds, "gated", torch.float64)
    for name, parameter in ours.fusion.named_parameters():
        assert torch.equal(parameter, start.fusion.get_parameter(name)) is name.startswith("projections"), name
