"""The sheet of one GPU: tests, reads by the host, step times, and waiting for data, in one call of at most 8 minutes.

`make cuda-sheet` runs all of it and writes docs/benchmarks/cuda.md. Without a CUDA device it runs shortened, on the
CPU, and writes runs/cuda-sheet.md: a check that the script works, whose times mean nothing.
"""

from __future__ import annotations

import argparse
import io
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import cremad
from bench.measure import operations, ratios, timed
from bench.models import Step, Transformer, Two, Workload, balanced, fitted, inner, pair
from modbalance import BalancedOptimizer
from modbalance.method import Method
from recipe_common.cli import main as run_recipe
from recipe_common.report.folder import RunFolder
from recipes.cremad_sized_clips import write_clips
from support.methods import AUDIO_VISUAL, METHODS, acting
from support.operation_counts import READS, CountOps

PROJECT = Path(__file__).parents[2]
SECONDS = 480.0
"""Time for the whole sheet."""
"""Options without which a method cannot be built."""
"""Options without which a method leaves a transformer alone."""


def transformers() -> nn.Module:
    """Return two transformers of 12 blocks and width 384, the size of ViT-S, over 196 tokens each."""
    return Two(lambda: Transformer(384, 6, 12, tokens=196), 384)


FULL = {
    "ResNet-18 pair": Workload(pair, 64, ((1, 257, 188), (3, 1, 224, 224))),
    "transformer pair": Workload(transformers, 64, ((196, 16), (196, 16))),
}
TINY = Workload(pair, 2, ((1, 33, 32), (3, 1, 32, 32)))
SHORT = {
    "ResNet-18 pair": TINY,
    "transformer pair": Workload(lambda: Two(lambda: Transformer(16, 2, 2, tokens=8), 16), 2, ((8, 16), (8, 16))),
}


@attrs.frozen
class Sheet:
    """How the sheet is made, and where it goes.

    Attributes:
        device: Device of every step.
        methods: The methods, or their names.
        output: File that is written.
        ends: Reading of the clock after which no further part begins.
    """

    device: torch.device
    methods: Sequence[str | Method]
    output: Path
    ends: float

    @property
    def is_full(self) -> bool:
        return self.device.type == "cuda"

    @property
    def workloads(self) -> dict[str, Workload]:
        return FULL if self.is_full else SHORT

    def seconds_left(self) -> float:
        return self.ends - time.monotonic()


@attrs.frozen
class Part:
    """A finished part of the sheet: its Markdown, and what is wrong."""

    text: str
    faults: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the sheet; return 1 if a test failed, the host read the device, or a part was left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--output", type=Path, help="default: docs/benchmarks/cuda.md, or runs/cuda-sheet.md on a CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no part begins after this time (default: 480)")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    default = PROJECT / ("docs/benchmarks/cuda.md" if device.type == "cuda" else "runs/cuda-sheet.md")
    sheet = Sheet(device, given.methods, given.output or default, time.monotonic() + given.seconds)
    faults = write(sheet)
    print(f"{sheet.output}: {'; '.join(faults) or 'no faults'}")
    return 1 if faults else 0


def write(sheet: Sheet) -> list[str]:
    """Write the sheet part by part, so that one that is cut short keeps what it has; return the faults."""
    texts, faults = [heading(sheet)], list[str]()
    sheet.output.parent.mkdir(parents=True, exist_ok=True)
    for name, make in PARTS.items():
        started = time.monotonic()
        part = make(sheet) if sheet.seconds_left() > 0 else Part("Left out: no time.", (f"{name}: left out, no time",))
        texts.append(f"## {name}\n\n{part.text}\n\nTook {time.monotonic() - started:.0f} s.\n")
        faults.extend(part.faults)
        sheet.output.write_text("\n".join(texts))
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return faults


def heading(sheet: Sheet) -> str:
    """Return title, command, hardware and versions."""
    if sheet.is_full:
        what = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        what = f"CPU, shortened: {platform.machine()}, {torch.get_num_threads()} threads; its times mean nothing"
    return (
        "# Steps on a GPU\n\n<!-- written by `make cuda-sheet` -->\n\n"
        f"{what}; torch {torch.__version__}, Python {platform.python_version()}.\nCommand: `make cuda-sheet`.\n"
    )


def tests(sheet: Sheet) -> Part:
    """Run the tests that need a CUDA device."""
    if not sheet.is_full:
        return Part("No CUDA device: no test was run.")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    limit = max(1.0, sheet.seconds_left() / 2)
    try:
        run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Part("The tests took too long.", (f"tests: stopped after {limit:.0f} s",))
    lines = run.stdout.strip().splitlines() or run.stderr.strip().splitlines() or ["no output"]
    failed = tuple(line for line in lines if line.startswith(("FAILED", "ERROR")))
    listing = "".join(f"\n- {line}" for line in failed)
    return Part(
        f"`pytest -m cuda`: {lines[-1].strip('= ')}{listing}", failed or (("tests failed",) if run.returncode else ())
    )


def reads(sheet: Sheet) -> Part:
    """Run whole steps of each method in which a read by the host is an error, and is counted."""
    rows, faults = [], []
    for method in sheet.methods:
        step = step_of(sheet, TINY, method)
        for _ in range(3):  # the first step may look at the model, to learn its structure
            step()
        problem = ""
        with synchronisation_is_an_error(sheet), CountOps() as counted:
            try:
                step()
            except RuntimeError as error:
                problem = str(error).splitlines()[0]
        count = sum(counted.ops[read] for read in READS)
        name = method_name(method)
        rows.append((name, str(count), problem or "none"))
        if count or problem:
            faults.append(f"{name}: the host reads the device in a step")
    return Part(table(("method", "reads", "synchronisation"), rows), tuple(faults))


@contextmanager
def synchronisation_is_an_error(sheet: Sheet) -> Iterator[None]:
    if not sheet.is_full:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step_times(sheet: Sheet) -> Part:
    """Measure steps of each method over the bare optimizer, interleaved, by model and number format."""
    texts = []
    for name, workload in sheet.workloads.items():
        for dtype in (None, torch.bfloat16):
            texts.append(
                f"{name}, batch {workload.size}, {'bf16' if dtype else 'fp32'}\n\n{times(sheet, workload, dtype)}"
            )
    return Part("\n\n".join(texts))


def times(sheet: Sheet, workload: Workload, dtype: torch.dtype | None) -> str:
    """Return the table of one model and number format."""
    steps = {"bare optimizer": step_of(sheet, workload, None, dtype)}
    steps |= {method_name(method): step_of(sheet, workload, method, dtype) for method in sheet.methods}
    over_bare = {"bare optimizer": 1.0, **ratios(steps, pairs=15 if sheet.is_full else 1, warm_up=3)}
    milliseconds = 1000 * min(timed(steps["bare optimizer"]) for _ in range(5 if sheet.is_full else 1))
    memory = {name: peak_memory(sheet, step) for name, step in steps.items()}
    first = memory["bare optimizer"]
    rows = [
        (
            name,
            f"{milliseconds * over_bare[name]:.1f}",
            f"{over_bare[name]:.2f}",
            f"{memory[name] / first:.2f}" if first else "-",
            f"{launches(sheet, step):,}",
        )
        for name, step in steps.items()
    ]
    return table(
        ("step of", "ms", "over bare", "peak memory over bare", "kernels" if sheet.is_full else "operations"), rows
    )


def peak_memory(sheet: Sheet, step: Step) -> int:
    """Return the bytes that a step needs beyond those that stay; 0 on a CPU, which does not count them."""
    if not sheet.is_full:
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def launches(sheet: Sheet, step: Step) -> int:
    """Return the kernels that a step launches; on a CPU its operations."""
    if not sheet.is_full:
        return operations(step, warm_up=0)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type is DeviceType.CUDA for event in recorded.events() or ())


def step_of(sheet: Sheet, workload: Workload, method: str | Method | None, dtype: torch.dtype | None = None) -> Step:
    """Return one turn of the training loop, of the bare optimizer for None; forward and loss in `dtype`."""
    model = fitted(workload.model(sheet.device), method).train()
    optimizer = inner(model) if method is None else balanced(model, method, **options_for(model, method))
    loss_fn: nn.Module = nn.CrossEntropyLoss()
    criterion = optimizer.criterion(loss_fn) if isinstance(optimizer, BalancedOptimizer) else loss_fn
    inputs, target = workload.batch(sheet.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(sheet.device.type, dtype=dtype, enabled=dtype is not None):
            loss = criterion(model(*inputs), target)
        loss.backward()
        optimizer.step()

    return step


def method_name(method: str | Method) -> str:
    return method if isinstance(method, str) else method.name


def options_for(model: nn.Module, method: str | Method) -> dict[str, Any]:
    """Return the options with which a method can be built and does something on this model."""
    if isinstance(method, Method):
        return {}
    has_convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return acting(method, AUDIO_VISUAL, has_convolutions)


def waiting(sheet: Sheet) -> Part:
    """Train the CREMA-D recipe on synthetic clips of its sizes; report the share of an epoch that waits for data."""
    clips, batch, workers, epochs = (512, 64, 8, 4) if sheet.is_full else (2, 2, 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        root = write_clips(Path(folder) / "data", clips)
        flags = ["--data-root", str(root), "--cache", "auto", "--batch-size", str(batch), "--workers", str(workers)]
        output = Path(folder) / "run"
        messages = io.StringIO()
        with redirect_stdout(messages):
            status = run_recipe(cremad.RECIPE, [*flags, "--epochs", str(epochs), "--output", str(output)])
        result = RunFolder(output / "none", cremad.RECIPE.name, {}).read_result()
    if status or result is None:
        return Part("The recipe failed.", (f"waiting for data: {messages.getvalue().strip().splitlines()[-1:]}",))
    last = result["history"][-1]
    row = (
        str(batch),
        str(workers),
        f"{1000 * last['seconds'] / last['steps']:.0f}",
        f"{last['waiting'] / last['seconds']:.1%}",
    )
    head = ("batch", "workers", "ms per step", "waiting for data")
    return Part(f"`cremad.py --cache auto` on synthetic clips, last of {epochs} epochs.\n\n{table(head, [row])}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PARTS: dict[str, Callable[[Sheet], Part]] = {
    "Tests": tests,
    "Reads by the host": reads,
    "Step times": step_times,
    "Waiting for data": waiting,
}

if __name__ == "__main__":
    sys.exit(main())
