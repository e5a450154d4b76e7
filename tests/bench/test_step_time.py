"""Step times on the ResNet-18 pair: every method over the bare optimizer, and the plain twins over ours.

`make bench` prints the figures; ratios are from one run. On a CUDA device the batch is 64 at the paper's sizes; on a
CPU it is small, and only ratios mean anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import attrs
import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from bench.models import fitted
from modbalance import BalancedOptimizer
from recipe_common.models.clips import audio_visual_net
from recipe_common.models.fusion import LateFusionNet
from support.methods import AUDIO_VISUAL, METHODS, acting
from support.reference import agm, cggm, dgl, mslr, ogm_ge

LIMITS = {"none": 1.05, "ogm": 1.05, "ogm_ge": 1.05, "dgl": 1.05, "cggm": 1.05, "agm": 2.1}
"""Largest ratio to the bare optimizer on a CUDA device."""

Step = Callable[[], None]
Batch = tuple[Tensor, Tensor, Tensor]


def batch_on(device: torch.device) -> Batch:
    """Return audio (B, 1, 257, W), frames (B, 3, 1, S, S) and classes (B,)."""
    size, width, pixels = (64, 188, 224) if device.type == "cuda" else (8, 64, 64)
    audio, visual = torch.randn(size, 1, 257, width), torch.randn(size, 3, 1, pixels, pixels)
    return audio.to(device), visual.to(device), torch.randint(6, (size,)).to(device)


def pair(device: torch.device, method: str = "none") -> tuple[LateFusionNet, Optimizer]:
    """Return the model, with a head that a method needs, and its optimizer, the same every time."""
    torch.manual_seed(0)
    model = audio_visual_net(6).to(device)
    fitted(model, method)
    return model, SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)


def bare(batch: Batch) -> Step:
    """Return a step of the inner optimizer alone."""
    model, optimizer = pair(batch[0].device)
    return loop(model, optimizer, nn.CrossEntropyLoss(), batch)


def ours(method: str, batch: Batch) -> Step:
    """Return a step of a method."""
    model, inner = pair(batch[0].device, method)
    modalities = {"audio": "audio_net", "visual": "visual_net"}
    options = acting(method, AUDIO_VISUAL)
    optimizer = BalancedOptimizer(inner, method, model=model, modalities=modalities, fusion="fusion_module", **options)
    return loop(model, optimizer, optimizer.criterion(nn.CrossEntropyLoss()), batch)


def loop(model: nn.Module, optimizer: Optimizer, criterion: nn.Module, batch: Batch) -> Step:
    """Return one turn of the training loop."""
    audio, visual, target = batch

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(audio, visual), target).backward()
        optimizer.step()

    return step


@attrs.frozen
class Parts:
    """The model as the twins take it."""

    model: LateFusionNet
    inner: Optimizer

    @property
    def encoders(self) -> list[nn.Module]:
        return [self.model.get_submodule("audio_net"), self.model.get_submodule("visual_net")]

    @property
    def head(self) -> nn.Linear:
        return next(module for module in self.model.fusion_module.modules() if isinstance(module, nn.Linear))

    def encode(self, *inputs: Tensor) -> list[Tensor]:
        return [encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)]

    def sliced(self, z: list[Tensor]) -> list[Tensor]:
        return ogm_ge.sliced(z, self.head.weight, self.head.bias)

    def zeroed(self, z: list[Tensor]) -> list[Tensor]:
        return dgl.zeroed(z, self.model.fusion_module)


def twins(batch: Batch) -> dict[str, Step]:
    """Return a step of the plain twin of each method that acts within steps."""
    *inputs, y = batch
    return {
        "ogm": partial(ogm_twin(Parts(*pair(y.device))).step, inputs, y),
        "agm": partial(agm_twin(Parts(*pair(y.device))).step, [(inputs, y)]),
        "dgl": partial(dgl_twin(Parts(*pair(y.device))).step, inputs, y),
        "cggm": partial(cggm_twin(Parts(*pair(y.device))).step, inputs, y),
        "mslr": partial(mslr_twin(Parts(*pair(y.device))).step, inputs, y),
    }


def ogm_twin(parts: Parts) -> ogm_ge.Twin:
    fusion = parts.model.fusion_module
    return ogm_ge.Twin(
        encoders=parts.encoders, encode=parts.encode, head=fusion, unimodal=parts.sliced, inner=parts.inner
    )


def agm_twin(parts: Parts) -> agm.Twin:
    return agm.Twin(model=parts.model, head=[parts.head.weight], inner=parts.inner, modalities=2)


def dgl_twin(parts: Parts) -> dgl.Twin:
    fusion = parts.model.fusion_module
    return dgl.Twin(fusion=fusion, encode=parts.encode, unimodal=parts.zeroed, inner=parts.inner)


def cggm_twin(parts: Parts) -> cggm.Twin:
    probes = nn.ModuleList(nn.Linear(512, 6) for _ in parts.encoders).to(parts.head.weight.device)
    return cggm.Twin(
        encoders=parts.encoders,
        encode=parts.encode,
        head=parts.model.fusion_module,
        probes=list(probes),
        run_probe=lambda probe, z, _: probe(z),
        out=parts.head,
        lasts=list(probes),
        inner=parts.inner,
        probe_inner=torch.optim.Adam(probes.parameters(), lr=5e-4),
        slices=[slice(0, 512), slice(512, 1024)],
    )


def mslr_twin(parts: Parts) -> mslr.MSLRTwin:
    return mslr.MSLRTwin(model=parts.model, encoders=parts.encoders, inner=parts.inner, init=[0.9, 1.1])


def best_times(steps: dict[str, Step], device: torch.device, repetitions: int = 20) -> dict[str, float]:
    """Return the shortest time of each step in seconds: the one that was least disturbed."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 3):
        # Interleaved, so that what else the machine does falls on all alike.
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repetition >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore:.*B_i.*")
def test_step_times() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = batch_on(device)
    steps = {"bare optimizer": bare(batch)} | {method: ours(method, batch) for method in METHODS}
    steps |= {f"{name}, plain twin": step for name, step in twins(batch).items()}
    best = best_times(steps, device, repetitions=20 if device.type == "cuda" else 8)
    table = Table(
        "step of", "ms", "over bare", "over ours", title=f"ResNet-18 pair, SGD, {device.type}, B = {len(batch[2])}"
    )
    for name, seconds in best.items():
        method = name.removesuffix(", plain twin")
        over_ours = f"{seconds / best[method]:.2f}" if method != name else ""
        table.add_row(name, f"{1000 * seconds:.1f}", f"{seconds / best['bare optimizer']:.3f}", over_ours)
    Console(width=100).print(table)
    if device.type == "cuda":  # on a CPU, drawing the noise of OGM-GE weighs as much as a small batch
        assert all(best[method] / best["bare optimizer"] <= limit for method, limit in LIMITS.items())
