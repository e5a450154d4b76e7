"""Step time over the bare optimizer on the ResNet-18 pair. `make bench` prints the figures; ratios are from one run.

On a CUDA device the batch is 64 at the paper's sizes; on CPU it is small, and only ratios mean anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from common.models.audiovisual import AudioVisualNet
from rich.console import Console
from rich.table import Table
from torch import nn

from modbalance import BalancedOptimizer

METHODS = ("none", "ogm", "ogm_ge")
LIMIT = 1.05


def stepper(method: str | None, device: torch.device) -> Callable[[], None]:
    """Return a function that takes one training step; ``None`` is the bare optimizer."""
    torch.manual_seed(0)
    model = AudioVisualNet(6).to(device)
    bare = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    optimizer: torch.optim.Optimizer = bare
    criterion: nn.Module = nn.CrossEntropyLoss()
    if method is not None:
        modalities = {"audio": "audio_net", "visual": "visual_net"}
        optimizer = BalancedOptimizer(bare, method, model=model, modalities=modalities, fusion="fusion_module")
        criterion = optimizer.criterion(criterion)
    size, width, pixels = (64, 188, 224) if device.type == "cuda" else (8, 64, 64)
    audio = torch.randn(size, 1, 257, width, device=device)
    visual = torch.randn(size, 3, 1, pixels, pixels, device=device)
    target = torch.randint(6, (size,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(audio, visual), target).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@pytest.mark.bench
def test_step_time_over_the_bare_optimizer() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steppers = {method: stepper(method, device) for method in (None, *METHODS)}
    times: dict[str | None, list[float]] = {method: [] for method in steppers}
    for repetition in range(25):
        # Interleaved, so that what else the machine does falls on all alike.
        for method, step in steppers.items():
            elapsed = seconds(step, device)
            if repetition >= 5:
                times[method].append(elapsed)
    # The smallest time is the one that was least disturbed.
    best = {method: min(values) for method, values in times.items()}
    table = Table("method", "step, ms", "ratio to bare", title=f"ResNet-18 pair, SGD, {device.type}")
    for method, value in best.items():
        table.add_row(method or "bare optimizer", f"{1000 * value:.1f}", f"{value / best[None]:.3f}")
    Console().print(table)
    if device.type == "cuda":  # on a CPU, drawing the noise of OGM-GE weighs as much as a small batch
        assert all(best[method] / best[None] <= LIMIT for method in METHODS)
