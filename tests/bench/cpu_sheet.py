"""The sheet of the CPU: time and operations of a step of every method over the bare optimizer, in one run.

`make bench` writes it to docs/benchmarks/cpu.md. All steps of one workload take turns, so that what else the machine
does falls on all alike; a ratio is the median over the rounds. Operations repeat exactly.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from torch import nn

from bench.cuda_sheet import table
from bench.measure import flops, operations, ratios
from bench.models import PAPER_SIZES, WORKLOADS, Step, balanced, bare_step, inner, method_step, training_step
from bench.peak_memory import peak_of_a_step
from support.methods import AUDIO_VISUAL, acting

OUTPUT = Path(__file__).parents[2] / "docs" / "benchmarks" / "cpu.md"
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "vit": {"agm, full": {"coalitions": "full"}, "agm, joined": {"coalitions": "joined"}},
    "pair": {"agm, recompute": {"recompute": True}},
}
"""Further options that are measured, by workload and title; a title begins with the method."""
PAIRS = {"mlp": 41, "vit": 15, "wide": 15, "pair": 15}
"""Rounds by workload."""
REPEATED = {"mlp": 5}
"""Steps that are timed together, where a single one is short."""
TIMES = {
    ("mlp", "none"): 1.03,
    ("mlp", "ogm"): 1.9,
    ("mlp", "cggm"): 3.0,
    ("mlp", "dgl"): 1.8,
    ("vit", "ogm_ge"): 1.3,
    ("vit", "agm"): 2.1,
    ("vit", "agm, joined"): 2.5,
    ("wide", "agm"): 1.3,
    ("pair", "ogm_ge"): 1.25,
    ("pair", "agm"): 2.05,
}
"""Largest time over the bare optimizer that is aimed at."""
FURTHER = {
    "wide, agm: floating-point operations over bare": 1.07,
    "pair at batch 64 and the paper's sizes, agm: peak memory over bare": None,
    "the same with recompute=True": 1.15,
    "the same with recompute=True, coalitions='full'": 1.15,
    "mlp, agm: time over bare, both with the compiled model": 3.0,
    "the same, compiled in place": 3.0,
}
"""What else is measured, and the largest value that is aimed at."""
ADDED = {("mlp", "ogm"): 36, ("mlp", "cggm"): 100, ("vit", "ogm_ge"): 1300}
"""Most operations beyond those of the bare optimizer that are aimed at."""


@attrs.frozen
class Row:
    """A measured step.

    Attributes:
        workload: Name of the workload.
        method: Name of the method, or title of a variant.
        ratio: Time over that of the bare optimizer.
        added: Operations beyond those of the bare optimizer.
    """

    workload: str
    method: str
    ratio: float
    added: int

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        key = (self.workload, self.method)
        time, added = TIMES.get(key, ""), ADDED.get(key, "")
        return (self.workload, self.method, f"{self.ratio:.2f}", str(time), f"{self.added:,}", str(added))


def measure(workload: str, methods: Iterable[str], pairs: int) -> list[Row]:
    """Return the rows of one workload, whose steps take turns."""
    made = WORKLOADS[workload]
    steps = {"bare": bare_step(made)} | {name: method_step(made, name, **options(workload, name)) for name in methods}
    for title, further in VARIANTS.get(workload, {}).items():
        if (method := title.partition(",")[0]) in steps:
            steps[title] = method_step(made, method, **further)
    counts = {name: operations(step) for name, step in steps.items()}
    times = REPEATED.get(workload, 1)
    found: Mapping[str, float] = ratios(
        {name: repeated(step, times) for name, step in steps.items()}, pairs=pairs, threads=made.threads
    )
    return [Row(workload, name, ratio, counts[name] - counts["bare"]) for name, ratio in found.items()]


def measure_further() -> dict[str, float]:
    """Return the values of `FURTHER`, in its order."""
    wide = WORKLOADS["wide"]
    bare, _ = peak_of_a_step(PAPER_SIZES, None)
    cases: tuple[dict[str, Any], ...] = ({}, {"recompute": True}, {"recompute": True, "coalitions": "full"})
    peaks = [peak_of_a_step(PAPER_SIZES, "agm", **{"coalitions": "factored", **case})[0] / bare for case in cases]
    work = flops(method_step(wide, "agm")) / flops(bare_step(wide))
    return dict(zip(FURTHER, [work, *peaks, compiled_ratio(around), compiled_ratio(in_place)], strict=True))


def around(model: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(model))


def in_place(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def compiled_ratio(compiled: Callable[[nn.Module], nn.Module]) -> float:
    """Return the time of a step of AGM with a compiled `mlp` over that of the bare optimizer with one."""
    torch._dynamo.reset()
    workload = WORKLOADS["mlp"]

    def step(method: str | None) -> Step:
        model = workload.model()
        forward = compiled(model)
        optimizer = inner(model) if method is None else balanced(forward, method)
        return training_step(model, forward, optimizer, workload.batch())

    (ratio,) = ratios({"bare": step(None), "agm": step("agm")}, pairs=30, warm_up=8).values()
    torch._dynamo.reset()
    return ratio


def options(workload: str, method: str) -> dict[str, Any]:
    """Return the options with which a method can be built and does something on a workload."""
    return acting(method, AUDIO_VISUAL, convolutions=workload == "pair")


def repeated(step: Step, times: int) -> Step:
    """Return several steps as one."""

    def steps() -> None:
        for _ in range(times):
            step()

    return steps


def sheet(rows: Iterable[Row], further: Mapping[str, float], load: tuple[float, float]) -> str:
    """Return the page.

    Args:
        rows: What was measured of each method.
        further: What else was measured.
        load: Load of the machine in the minute before and in the last minute of the run.
    """
    head = ("workload", "step of", "time over bare", "aim", "operations added", "aim")
    values = [(name, f"{value:.3g}", str(FURTHER[name] or "")) for name, value in further.items()]
    threads = ", ".join(f"`{name}` {made.threads}" for name, made in WORKLOADS.items())
    return (
        "# Steps on a CPU\n\n<!-- written by `make bench` -->\n\n"
        f"{processor()}, {os.cpu_count()} cores; torch {torch.__version__}, Python {platform.python_version()}. Load "
        f"of the machine {load[0]:.1f} before and {load[1]:.1f} at the end of the run, which takes two cores.\n"
        "Command: `make bench`. Threads: "
        f"{threads}.\n\nThe workloads are those of [models.py](../../tests/bench/models.py). Times are medians of "
        f"{min(PAIRS.values())} to {max(PAIRS.values())} rounds in which all steps of a workload take turns. "
        "Operations are those of aten without views; they repeat exactly, and `tests/behaviour/test_step_cost.py` "
        "limits them.\n\n"
        f"{table(head, [row.cells() for row in rows])}\n\n{table(('measured', 'value', 'aim'), values)}\n"
    )


def processor() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.machine()])[0]
