"""What AGM costs: time, operations, floating-point operations and peak memory over those of the bare optimizer.

`make bench` prints the table. Operations and bytes repeat exactly; times are interleaved medians of one run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.measure import flops, operations, ratios
from bench.models import PAPER_SIZES, WORKLOADS, Step, balanced, bare_step, inner, method_step, training_step
from bench.peak_memory import peak_of_a_step

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {}),
    "vit": ("vit", {}),
    "wide": ("wide", {}),
    "pair": ("pair", {}),
    "vit, full form": ("vit", {"coalitions": "full"}),
    "vit, joined form": ("vit", {"coalitions": "joined"}),
    "pair, recomputed": ("pair", {"recompute": True}),
}
TARGETS = {"vit": 2.1, "wide": 1.3, "pair": 2.05, "vit, joined form": 2.5}
COMPILED_TARGET, RECOMPUTED_TARGET = 3.0, 1.25


@pytest.mark.bench
def test_time_and_operations() -> None:
    table = Table(
        "step", "time over bare", "target", "operations", "of bare", "FLOPs over bare", title="AGM on the CPU"
    )
    for title, (name, options) in CASES.items():
        workload = WORKLOADS[name]
        bare, agm = bare_step(workload), method_step(workload, "agm", **options)
        (ratio,) = ratios({"bare": bare, "agm": agm}, threads=workload.threads).values()
        counts = (operations(agm), operations(bare), flops(agm) / flops(bare))
        table.add_row(title, f"{ratio:.2f}", str(TARGETS.get(title, "")), *map(str, counts[:2]), f"{counts[2]:.3f}")
    Console(width=100).print(table)


def around(model: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(model))


def in_place(model: nn.Module) -> nn.Module:
    model.compile()
    return model


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("title", "compiled"), [("compiled mlp", around), ("compiled in place", in_place)])
def test_time_of_a_compiled_model(title: str, compiled: Callable[[nn.Module], nn.Module]) -> None:
    torch._dynamo.reset()
    workload = WORKLOADS["mlp"]

    def step(method: str | None) -> Step:
        model = workload.model()
        forward = compiled(model)
        optimizer = inner(model) if method is None else balanced(forward, method)
        return training_step(model, forward, optimizer, workload.batch())

    (ratio,) = ratios({"bare": step(None), "agm": step("agm")}, pairs=30, warm_up=8).values()
    Console(width=100).print(f"{title}: {ratio:.2f} of the compiled bare step, target {COMPILED_TARGET}")
    torch._dynamo.reset()


@pytest.mark.bench
def test_peak_memory_and_its_price() -> None:
    bare, _ = peak_of_a_step(PAPER_SIZES, None)
    table = Table("form", "peak over bare", title="ResNet-18 pair at batch 64 and the paper's sizes")
    for coalitions in ("factored", "full"):
        for recompute in (False, True):
            peak, _ = peak_of_a_step(PAPER_SIZES, "agm", coalitions=coalitions, recompute=recompute)
            table.add_row(f"{coalitions}{', recomputed' * recompute}", f"{peak / bare:.3f}")
    Console(width=100).print(table)
    pair = WORKLOADS["pair"]
    steps = {"kept": method_step(pair, "agm"), "recomputed": method_step(pair, "agm", recompute=True)}
    (ratio,) = ratios(steps, threads=pair.threads).values()
    Console(width=100).print(f"time recomputed: {ratio:.2f} of the default, target {RECOMPUTED_TARGET}")
