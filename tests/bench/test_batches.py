"""Tensors of batches in shared memory and in large pages: time to fill and hand over a batch, against torch's way.

`make bench` prints the figures: least processor time, in one process, of a batch of 64 clips in CREMA-D's proportions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from recipe_common.data.samples import batches
from recipe_common.data.samples.batches import batch_tensor

SHAPES = ((64, 1, 257, 188), (64, 3, 1, 224, 224))


def batch(values: Sequence[Tensor]) -> None:
    for each in values:
        batch_tensor(*each.shape).copy_(each)


def batch_by_torch(values: Sequence[Tensor], is_shared: bool) -> None:
    for each in values:
        filled = torch.empty(each.shape).copy_(each)
        if is_shared:
            filled.share_memory_()  # as the queue of a DataLoader does


def seconds(fill: Callable[[], None], other: Callable[[], None], repetitions: int = 15) -> tuple[float, float]:
    """Return the least processor time of both, which take turns."""
    least = [float("inf"), float("inf")]
    for _ in range(repetitions):
        for index, each in enumerate((fill, other)):
            started = time.process_time()
            each()
            least[index] = min(least[index], time.process_time() - started)
    return least[0], least[1]


@pytest.mark.bench
def test_shared_memory_from_the_start_is_faster_than_a_copy_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [torch.rand(shape) for shape in SHAPES]
    table = Table("where", "ms per batch", "torch's way", "ratio", title="filling 51 MB and handing them over")
    large = seconds(lambda: batch(values), lambda: batch_by_torch(values, False))
    monkeypatch.setattr(batches, "get_worker_info", lambda: "a worker")
    shared = seconds(lambda: batch(values), lambda: batch_by_torch(values, True))
    for name, (ours, theirs) in {"a worker: shared memory": shared, "this process: large pages": large}.items():
        table.add_row(name, f"{1000 * ours:.1f}", f"{1000 * theirs:.1f}", f"{theirs / ours:.1f}")
    Console(width=100).print(table)
    assert shared[1] > shared[0]
