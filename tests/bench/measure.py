"""Measures steps against each other: interleaved times, operations, floating-point operations, peak memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from support.operation_counts import CountOps

Step = Callable[[], None]


def ratios(steps: Mapping[str, Step], pairs: int = 15, warm_up: int = 3, threads: int = 1) -> dict[str, float]:
    """Return for each step but the first the median, over rounds, of its time over that of the first.

    One round runs every step once, so that what else the machine does falls on all alike; the first of a round changes
    from round to round.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    with single(threads):
        for index in range(warm_up + pairs):
            shift = index % len(names)
            for name in [*names[shift:], *names[:shift]]:
                seconds = timed(steps[name])
                if index >= warm_up:
                    times[name].append(seconds)
    first = times[names[0]]
    return {name: median(t / b for t, b in zip(times[name], first, strict=True)) for name in names[1:]}


def timed(step: Step) -> float:
    """Return the seconds that a step takes; on a CUDA device, until it has finished."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def single(threads: int) -> Iterator[None]:
    """Run the body with a number of threads, without the collector of garbage."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(before)


def operations(step: Step, warm_up: int = 3) -> int:
    """Return the number of aten operations of a step, views left out."""
    for _ in range(warm_up):
        step()
    with CountOps() as counted:
        step()
    return counted.ops.total()


def flops(step: Step, warm_up: int = 3) -> int:
    """Return the floating-point operations of the matrix products and convolutions of a step."""
    for _ in range(warm_up):
        step()
    with FlopCounterMode(display=False) as counted:
        step()
    return int(counted.get_total_flops())
