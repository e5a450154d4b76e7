"""Fixtures and rules for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

# Threads of OpenMP that spin while they wait take the cores from the tests beside them: read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import settings

# The same examples on every machine, however slow it is today.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")

# The models are small, and tests run side by side.
torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run measurements only when asked for, and what needs a device or FSDP2 on CPUs only where there is one."""
    expression = config.getoption("markexpr")
    unwanted = set()
    if "bench" not in expression:
        unwanted.add("bench")
    if not torch.cuda.is_available():
        unwanted.add("cuda")
    if not hasattr(torch.cpu.Stream, "record_event"):
        unwanted.add("cpu_fsdp")
    dropped = [item for item in items if any(item.get_closest_marker(name) for name in unwanted)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def pytest_collection_finish() -> None:
    """Spare what is imported from every later garbage collection; each training of a recipe begins with one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed_and_threads() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # frameworks and recipes set it for the whole process


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Compute with two threads, as the trajectories were recorded.

    Sums in single precision depend on how they are split, and the run with saturated logits amplifies that to 5e-6.
    """
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
