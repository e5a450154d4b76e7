"""OGM and OGM-GE against a slow twin in the paper's notation, and the twin against runs of the authors' code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer
from support.encoders import ENCODERS, mixed
from support.models import HEADS, AudioVisual, ConcatFusion, Multimodal, SumFusion
from support.reference import ogm_ge
from support.reference.ogm_ge import Twin
from support.training import Batch, assert_close, audio_visual, balanced, batches, multimodal, sgd, train
from support.trajectories import Trajectory

SETTINGS = settings(deadline=None, derandomize=True, max_examples=50, phases=[Phase.generate, Phase.shrink])

DRAWN_FILTER = pytest.mark.filterwarnings("ignore:`param_filter:modbalance.ModbalanceWarning")
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "alpha": st.sampled_from([0.01, 0.3, 0.8, 3.0]),
    "ratio": st.sampled_from(["mean_others", "min"]),
    "tie": st.sampled_from(["first", "none"]),
    "ratio_shift": st.sampled_from([0, 1]),
    "param_filter": st.sampled_from(["conv", "matrix", "all"]),
}
NOISE: dict[str, st.SearchStrategy[Any]] = {
    "noise_on": st.sampled_from(["both", "suppressed"]),
    "noise_source": st.sampled_from(["raw", "modulated"]),
    "noise_scale": st.sampled_from([0.0, 0.5, 1.0]),
}
WINDOWS = st.sampled_from([(0, 50), (0, None), (1, 1), (2, 3), (0, 0)])


def twin_of(model: Multimodal, unimodal: str = "auto", **options: Any) -> Twin:
    """Return the twin of a training of this very model."""
    encoders = list(model.encoders.values())

    def encode(*inputs: Tensor) -> list[Tensor]:
        return [phi(x) for phi, x in zip(encoders, inputs, strict=True)]

    def logits(z: list[Tensor]) -> list[Tensor]:
        if unimodal == "auto" and isinstance(model.fusion, ConcatFusion):
            return ogm_ge.sliced(z, model.fusion.fc_out.weight, model.fusion.fc_out.bias)
        return ogm_ge.zeroed(z, model.fusion)

    return Twin(encoders=encoders, encode=encode, head=model.fusion, unimodal=logits, inner=sgd(model), **options)


def assert_agree(
    names: str,
    head: str,
    data: list[Batch],
    method: str,
    twin: dict[str, Any],
    kinds: Sequence[str] = (),
    **arguments: Any,
) -> None:
    ours, theirs = (mixed(names, kinds, head) for _ in range(2))
    epoch = arguments.pop("epoch", 0)
    optimizer = balanced(ours, method, **arguments)
    optimizer.epoch = epoch
    torch.manual_seed(0)
    train(ours, optimizer, data)
    reference = twin_of(theirs, epoch=epoch, **twin, **{k: v for k, v in arguments.items() if k != "seed"})
    torch.manual_seed(0)
    for inputs, y in data:
        reference.step(inputs, y)
    assert_close(ours, theirs, 1e-12)


def data_for(names: str, size: int, seed: int = 1, count: int = 3) -> list[Batch]:
    return batches(multimodal(names, dtype=torch.float64), count, size, seed, torch.float64)


@pytest.mark.slow
@DRAWN_FILTER
@SETTINGS
@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    head=st.sampled_from(sorted(HEADS)),
    size=st.integers(1, 5),
    seed=st.integers(0, 1000),
    unimodal=st.sampled_from(["auto", "zero"]),
    options=st.fixed_dictionaries(OPTIONS),
)
def test_ogm_equals_its_twin(
    names: str, head: str, size: int, seed: int, unimodal: str, options: dict[str, Any]
) -> None:
    assert_agree(names, head, data_for(names, size, seed), "ogm", {}, unimodal=unimodal, **options)


@pytest.mark.slow
@DRAWN_FILTER
@SETTINGS
@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    head=st.sampled_from(sorted(HEADS)),
    size=st.integers(1, 5),
    options=st.fixed_dictionaries(OPTIONS | NOISE),
    seed=st.integers(0, 1000),
)
def test_ogm_ge_equals_its_twin_given_the_same_draws(
    names: str, head: str, size: int, options: dict[str, Any], seed: int
) -> None:
    lifecycle = balanced(multimodal(names), "ogm_ge")._lifecycle

    def generator(steps: int) -> torch.Generator:
        lifecycle.training.steps = steps
        return lifecycle.run.generator(torch.device("cpu"), seed)

    assert_agree(names, head, data_for(names, size), "ogm_ge", {"generator": generator}, seed=seed, **options)


@pytest.mark.slow
@DRAWN_FILTER
@SETTINGS
@given(
    kinds=st.lists(st.sampled_from(sorted(ENCODERS)), min_size=2, max_size=4),
    head=st.sampled_from(sorted(HEADS)),
    size=st.integers(2, 5),
    options=st.fixed_dictionaries(OPTIONS),
)
def test_ogm_equals_its_twin_with_any_encoder(kinds: list[str], head: str, size: int, options: dict[str, Any]) -> None:
    names = "abcd"[: len(kinds)]
    assert_agree(names, head, data_for(names, size), "ogm", {}, kinds, **options)


@pytest.mark.slow
@SETTINGS
@given(window=WINDOWS, epoch=st.integers(0, 52))
def test_window_is_inclusive_at_both_ends(window: tuple[int, int | None], epoch: int) -> None:
    start, end = window
    arguments: dict[str, Any] = {"start_epoch": start, "end_epoch": end, "param_filter": "all", "epoch": epoch}
    assert_agree("ab", "concat", data_for("ab", 4, count=1), "ogm", {}, **arguments)


@pytest.mark.parametrize(("epoch", "acts"), [(1, False), (2, True), (3, True), (4, False)])
def test_edges_of_a_window(epoch: int, acts: bool) -> None:
    model, plain = (multimodal(dtype=torch.float64) for _ in range(2))
    optimizer = balanced(model, start_epoch=2, end_epoch=3)
    optimizer.epoch = epoch
    data = data_for("ab", 4, count=1)
    train(model, optimizer, data)
    train(plain, sgd(plain), data)
    names = ("encoders.a.0.weight", "encoders.b.0.weight")
    assert acts != all(torch.equal(model.get_parameter(name), plain.get_parameter(name)) for name in names)


def test_default_window_holds_epoch_50_and_not_51() -> None:
    data = data_for("ab", 4, count=1)
    for epoch in (50, 51):
        assert_agree("ab", "concat", data, "ogm", {}, param_filter="all", epoch=epoch)


def model_free(
    scores: list[list[float]], dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[dict[str, float], list[Tensor]]:
    """Return metrics and modulated gradients (raw: 1) for given unimodal logits, target 0 throughout."""
    parameters = [nn.Parameter(torch.zeros(2, 2, dtype=dtype)) for _ in scores]
    groups = [{"params": [p], "modality": str(u)} for u, p in enumerate(parameters)]
    optimizer = BalancedOptimizer(SGD(groups, lr=0.1), "ogm", param_filter="all", **options)
    logits = torch.stack([p.sum() for p in parameters]).unsqueeze(0)
    unimodal = {str(u): torch.tensor([row], dtype=dtype) for u, row in enumerate(scores)}
    optimizer.criterion(nn.CrossEntropyLoss())(logits, torch.tensor([0]), unimodal_logits=unimodal).backward()
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.modulate()
    return optimizer.metrics(), [p.grad for p in parameters if p.grad is not None]


@pytest.mark.slow
@SETTINGS
@given(
    row=st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3),
    modalities=st.integers(2, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    ratio=st.sampled_from(["mean_others", "min"]),
)
def test_equal_scores_suppress_the_first_modality_alone(
    row: list[float], modalities: int, dtype: torch.dtype, ratio: str
) -> None:
    _, gradients = model_free([row] * modalities, dtype, ratio=ratio)
    k = [gradient[0, 0].item() for gradient in gradients]
    assert k[0] == pytest.approx(1 - torch.tensor(0.8).tanh().item(), abs=1e-6)
    assert k[1:] == [1.0] * (modalities - 1)


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_equal_scores_suppress_nobody_where_ties_are_none(modalities: int) -> None:
    _, gradients = model_free([[0.3, 0.1, -0.4]] * modalities, torch.float32, tie="none")
    assert [gradient[0, 0].item() for gradient in gradients] == [1.0] * modalities


@pytest.mark.slow
@SETTINGS
@given(low=st.floats(0.125, 3, width=32))
def test_two_modalities_are_never_suppressed_together(low: float) -> None:
    below = torch.tensor([0.0, -low])
    above = torch.tensor([0.0, torch.nextafter(below[1], torch.tensor(-torch.inf)).item()])
    for rows in ([below, above], [above, below]):
        _, gradients = model_free([row.tolist() for row in rows], torch.float32)
        assert sum(gradient[0, 0].item() < 1 for gradient in gradients) == 1


def test_small_ratio_keeps_its_digits_in_single_precision() -> None:
    s = torch.tensor([[3.0, 0.0], [-2.0, 2.0]])
    _, gradients = model_free(s.tolist(), torch.float32, alpha=0.01)
    probabilities = s.double().softmax(1)[:, 0]
    expected = ogm_ge.coefficients(ogm_ge.ratios(list(probabilities)), 0.01)
    assert [g[0, 0].item() for g in gradients] == pytest.approx(expected, abs=2e-7)


def test_scores_of_zero_over_zero_leave_gradients_alone_and_are_counted() -> None:
    metrics, gradients = model_free([[-1e4, 1e4], [-1e4, 1e4]])
    assert [g[0, 0].item() for g in gradients] == [1.0, 1.0]
    assert metrics["ogm/nonfinite/0"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("name", "window"),
    [("ogm_concat", (0, 50)), ("ogm_sum", (0, 50)), ("ogm_saturated", (0, 50)), ("ogm_outside_window", (5, 9))],
)
def test_twin_equals_the_authors_code(name: str, window: tuple[int, int]) -> None:
    recorded = Trajectory(name)

    def run(nudge: int = 0) -> AudioVisual:
        model = audio_visual(SumFusion if "sum" in name else ConcatFusion)
        recorded.start(model, nudge)
        twin = Twin(
            encoders=[model.audio_net, model.visual_net],
            encode=lambda audio, visual: encoded(model, audio, visual),
            head=model.fusion_module,
            unimodal=lambda z: unimodal_of(model.fusion_module, z),
            inner=SGD(model.parameters(), lr=recorded.meta.get("lr", 0.05), momentum=0.9, weight_decay=1e-4),
            alpha=0.8,
            start_epoch=window[0],
            end_epoch=window[1],
            epoch=recorded.meta.get("epoch", 0),
        )
        for inputs, y in recorded.batches(torch.float32):
            twin.step(inputs, y)
        return model

    assert recorded.error(run()) <= recorded.limit(run)


def encoded(model: AudioVisual, audio: Tensor, visual: Tensor) -> list[Tensor]:
    return [model.audio_net(audio.unsqueeze(1)).mean((2, 3)), model.visual_net(visual).mean((1, 3, 4))]


def unimodal_of(head: nn.Module, z: list[Tensor]) -> list[Tensor]:
    if isinstance(head, SumFusion):
        return ogm_ge.own(z, [head.fc_x, head.fc_y])
    assert isinstance(head, ConcatFusion)
    return ogm_ge.sliced(z, head.fc_out.weight, head.fc_out.bias)
