"""CGGM against a slow twin in the paper's notation, and the twin against runs of the authors' code."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer
from modbalance_cggm.probes import Probe
from recipe_common.tasks.segmentation import mean_dice
from support.encoders import ENCODERS, mixed
from support.models import Multimodal
from support.reference import cggm
from support.reference.cggm import Twin
from support.segmentation import Segmenter, map_batches
from support.time_series import SeriesProbe, TimeSeries, optimizers_of, probe_error, probes_of, series
from support.training import Batch, assert_close, balanced, batches, multimodal, sgd
from support.trajectories import Trajectory

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40, phases=[Phase.generate, Phase.shrink])

# Columns of the head's weight, where they are not those of a feature.
HEADS = {"concat": 4, "film": 4, "gated": 4, "attention": 4, "mlp": 8}
DIRECTIONS = st.sampled_from([("weight", 1), ("weight", 0), ("gradient", 0), ("gradient", 1)])
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "rho": st.sampled_from([0.5, 1.3]),
    "lam": st.sampled_from([0.0, 0.2, 2.0]),
    "coeff_clip": st.sampled_from([None, (0.0, 1.0), (-2.0, 3.0)]),
    "metric_ema": st.sampled_from([0.0, 0.5]),
    "probe_eval": st.booleans(),
}


def slow(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.05, momentum=0.5)


def run_probe(probe: nn.Module, h: Tensor, o: Tensor) -> Tensor:
    return probe(h, o) if isinstance(probe, Probe) else probe(h)


def last_of(module: nn.Module) -> nn.Module:
    return [each for each in module.modules() if isinstance(each, nn.Linear)][-1]


def twin_of(model: Multimodal, probes: dict[str, nn.Module], **options: Any) -> Twin:
    """Return the twin of a training of this very model with these very probes."""
    encoders, out = list(model.encoders.values()), last_of(model.fusion)
    is_sliced = [name for name, _ in model.fusion.named_parameters()] == ["fc_out.weight", "fc_out.bias"]

    def encode(*inputs: Tensor) -> list[Tensor]:
        return [phi(x) for phi, x in zip(encoders, inputs, strict=True)]

    return Twin(
        encoders=encoders,
        encode=encode,
        head=model.fusion,
        probes=list(probes.values()),
        run_probe=run_probe,
        out=out,
        lasts=[last_of(probe) for probe in probes.values()],
        inner=sgd(model),
        probe_inner=slow([p for probe in probes.values() for p in probe.parameters()]),
        slices=[slice(4 * i, 4 * i + 4) for i in range(len(encoders))] if is_sliced else None,
        **options,
    )


def assert_agree(
    names: str,
    head: str,
    data: list[Batch],
    probes: Any,
    options: dict[str, Any],
    metric: tuple[str, Callable[[Tensor, Tensor], float]] = ("accuracy", cggm.accuracy),
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    kinds: Sequence[str] = (),
) -> None:
    ours, theirs = (mixed(names, kinds, head) for _ in range(2))
    optimizer = balanced(
        ours,
        "cggm",
        probes=probes,
        probe_optimizer=slow,
        metric=metric[0],
        feature_sizes=[4] * len(names),
        clip_grad_norm=0.8,
        **options,
    )
    criterion = optimizer.criterion(loss_fn)
    twin, copies = None, {}
    for number, (inputs, y) in enumerate(data):
        torch.manual_seed(number)
        optimizer.zero_grad()
        loss = criterion(ours(*inputs), y)
        if twin is None:
            copies = copy.deepcopy(probes_at_work(optimizer))
            twin = twin_of(theirs, copies, metric=metric[1], task_loss=loss_fn, **options)
        loss.backward()
        optimizer.step()
        torch.manual_seed(number)
        twin.step(inputs, y)
    assert_close(ours, theirs, 1e-12)
    for name, probe in probes_at_work(optimizer).items():
        assert_close(probe, copies[name], 1e-12)


def probes_at_work(optimizer: BalancedOptimizer) -> dict[str, nn.Module]:
    method: Any = optimizer._lifecycle.methods[0]
    return method._built.modules


def data_for(names: str, size: int, seed: int = 1, count: int = 4) -> list[Batch]:
    return batches(multimodal(names, dtype=torch.float64), count, size, seed, torch.float64)


class NormProbe(nn.Sequential):
    """A probe with buffers: a batch norm, before the last layer."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))


def factory(kind: str, width: int) -> Any:
    def make(name: str, size: int, outputs: int) -> nn.Module:
        return (SeriesProbe(size, width, outputs) if kind == "series" else NormProbe(width)).double()

    return make


@pytest.mark.slow
@SETTINGS
@given(
    names=st.sampled_from(["ab", "abc", "abcd"]),
    head=st.sampled_from(sorted(HEADS)),
    size=st.integers(2, 6),
    seed=st.integers(0, 1000),
    probes=st.sampled_from(["linear", "mlp", "series", "norm"]),
    direction=DIRECTIONS,
    options=st.fixed_dictionaries(OPTIONS),
)
def test_cggm_equals_its_twin(
    names: str,
    head: str,
    size: int,
    seed: int,
    probes: str,
    direction: tuple[str, int],
    options: dict[str, Any],
) -> None:
    built = "mlp" if probes == "linear" and head == "mlp" else probes
    chosen = factory(built, HEADS[head]) if built in ("series", "norm") else built
    options = options | {"direction": direction[0], "direction_delay": direction[1]}
    assert_agree(names, head, data_for(names, size, seed), chosen, options)


@pytest.mark.slow
@SETTINGS
@given(
    kinds=st.lists(st.sampled_from(sorted(ENCODERS)), min_size=2, max_size=4),
    head=st.sampled_from(sorted(HEADS)),
    size=st.integers(2, 6),
    direction=DIRECTIONS,
    options=st.fixed_dictionaries(OPTIONS),
)
def test_cggm_equals_its_twin_with_any_encoder(
    kinds: list[str], head: str, size: int, direction: tuple[str, int], options: dict[str, Any]
) -> None:
    names = "abcd"[: len(kinds)]
    turned = options | {"direction": direction[0], "direction_delay": direction[1]}
    assert_agree(names, head, data_for(names, size), factory("norm", HEADS[head]), turned, kinds=kinds)


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_presets(preset: str, names: str) -> None:
    paper = {"direction": "gradient", "direction_delay": 0}
    data = data_for(names, 5)
    ours, theirs = (multimodal(names, dtype=torch.float64) for _ in range(2))
    optimizer = balanced(
        ours, "cggm", preset=preset, probe_optimizer=slow, feature_sizes=[4] * len(names), clip_grad_norm=0.8
    )
    twin = twin_of(theirs, copy.deepcopy(probes_at_work(optimizer)), **(paper if preset == "paper" else {}))
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for inputs, y in data:
        optimizer.zero_grad()
        criterion(ours(*inputs), y).backward()
        optimizer.step()
        twin.step(inputs, y)
    assert_close(ours, theirs, 1e-12)


@pytest.mark.slow
@SETTINGS
@given(names=st.sampled_from(["ab", "abcd"]), seed=st.integers(0, 1000), direction=DIRECTIONS)
def test_regression_equals_its_twin(names: str, seed: int, direction: tuple[str, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    data: list[Batch] = [
        (inputs, torch.randn(5, 3, generator=generator, dtype=torch.float64)) for inputs, _ in data_for(names, 5, seed)
    ]
    options = {"direction": direction[0], "direction_delay": direction[1]}
    assert_agree(names, "film", data, "linear", options, ("sign", cggm.sign), F.l1_loss)


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
@pytest.mark.parametrize(("direction", "direction_delay"), [("weight", 1), ("gradient", 0)])
def test_segmentation_equals_its_twin(names: str, direction: str, direction_delay: int) -> None:
    torch.manual_seed(4)
    ours = Segmenter(names).double()
    theirs = copy.deepcopy(ours)
    options: dict[str, Any] = {"direction": direction, "direction_delay": direction_delay}
    optimizer = BalancedOptimizer(
        sgd(ours),
        "cggm",
        model=ours,
        modalities=ours.paths,
        fusion="fusion",
        metric=partial(mean_dice, regions=((3,), (1, 3), (1, 2, 3))),
        probe_optimizer=slow,
        clip_grad_norm=0.8,
        **options,
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    twin = None
    for inputs, y in map_batches(names, 4):
        optimizer.zero_grad()
        loss = criterion(ours(*inputs), y)
        if twin is None:
            probes = copy.deepcopy(probes_at_work(optimizer))
            encoders = list(theirs.encoders.values())
            twin = Twin(
                encoders=encoders,
                encode=lambda *inputs, phis=encoders: [phi(x) for phi, x in zip(phis, inputs, strict=True)],
                head=theirs.fusion,
                probes=list(probes.values()),
                run_probe=run_probe,
                out=theirs.fusion.out,
                lasts=[probe.out_layer for probe in probes.values()],
                inner=sgd(theirs),
                probe_inner=slow([p for probe in probes.values() for p in probe.parameters()]),
                slices=[slice(3 * i, 3 * i + 3) for i in range(len(names))],
                metric=lambda o, y: cggm.dice(o, y, [(3,), (1, 3), (1, 2, 3)]),
                **options,
            )
        loss.backward()
        optimizer.step()
        twin.step(inputs, y)
    assert_close(ours, theirs, 1e-12)


@pytest.mark.filterwarnings("ignore:.*almost no effect")
@pytest.mark.parametrize("name", ["cggm", "cggm_adam", "cggm_no_direction"])
def test_twin_equals_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    model, probes = TimeSeries(), probes_of(recorded)
    recorded.start(model)
    make_main, make_probe_optimizer = optimizers_of(recorded.meta)
    twin = Twin(
        encoders=list(model.encoders),
        encode=lambda *inputs: [phi(x).mean(1) for phi, x in zip(model.encoders, inputs, strict=True)],
        head=lambda *h: model.out_layer(model.fusion(torch.cat(h, -1))),
        probes=list(probes.values()),
        run_probe=run_probe,
        out=model.out_layer,
        lasts=[last_of(probe) for probe in probes.values()],
        inner=make_main(model.parameters()),
        probe_inner=make_probe_optimizer([p for probe in probes.values() for p in probe.parameters()]),
        rho=recorded.meta["rou"],
        lam=recorded.meta["lamda"],
    )
    for inputs, y in series(recorded):
        twin.step(inputs, y)
    assert recorded.error(model) <= 1e-6
    assert probe_error(recorded, probes) <= 1e-6
