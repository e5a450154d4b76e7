"""The competition metric of AGM's authors against NumPy, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from modbalance_agm import competition_metric
from support.reference.competition import competition

SETTINGS = settings(deadline=None, derandomize=True, max_examples=20, phases=[Phase.generate, Phase.shrink])


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SETTINGS
@given(
    count=st.integers(2, 20),
    features=st.integers(1, 6),
    size=st.integers(1, 4),
    alpha=st.sampled_from([0.1, 1.0, 120.0]),
    seed=st.integers(0, 100),
)
def test_competition_metric_equals_numpy(count: int, features: int, size: int, alpha: float, seed: int) -> None:
    f, y = draw(2 * count, features, seed=seed), draw(2 * count, size, seed=seed + 1000)
    # With fewer samples than dimensions the covariance has a rank that depends on a threshold.
    size = min(size, count - 1)
    parts = (f[:count], y[:count, :size], f[count:], y[count:, :size])
    expected = competition(*(np.asarray(part) for part in parts), alpha=alpha)
    assert competition_metric(*parts, alpha=alpha).item() == pytest.approx(expected, rel=1e-6)


def test_competition_metric_is_zero_where_features_hold_the_concept() -> None:
    f, f_test, mixing = draw(400, 6, seed=0), draw(50, 6, seed=1), draw(6, 3, seed=2)
    assert competition_metric(f, f @ mixing + 2, f_test, f_test @ mixing + 2, alpha=1e-9).item() < 1e-12


def test_competition_metric_of_predicting_the_mean() -> None:
    y = draw(40, 3, seed=0)
    y[:, 2] = y[:, 0] - y[:, 1]
    nothing = torch.zeros(40, 5, dtype=torch.float64)
    assert competition_metric(nothing, y, nothing, y).item() == pytest.approx(39 / 40 * 2 / 3)


def test_competition_metric_reads_no_graph_and_keeps_double_precision() -> None:
    d = competition_metric(*(draw(8, 2, seed=s).float().requires_grad_() for s in range(4)))
    assert d.dtype == torch.float64
    assert not d.requires_grad
    assert d.shape == ()
