"""Fixtures and rules for all tests."""

from __future__ import annotations

import pytest
import torch

# Sums in single precision depend on how they are split over threads. The trajectories were recorded with two, and the
# one with saturated logits amplifies the difference to 5e-6.
torch.set_num_threads(2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run measurements only when asked for, and CUDA tests only where there is a device."""
    expression = config.getoption("markexpr")
    unwanted = set()
    if "bench" not in expression:
        unwanted.add("bench")
    if not torch.cuda.is_available():
        unwanted.add("cuda")
    dropped = [item for item in items if any(item.get_closest_marker(name) for name in unwanted)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
