"""Clusters do not depend on the number of threads, though those of scikit-learn do in single precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from modbalance_relearning.clusters import clustered


def threads() -> set[int]:
    """Return the numbers of threads of the libraries in this process."""
    return {pool["num_threads"] for pool in threadpool_info()}


def test_k_means_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    fit_predict = KMeans.fit_predict

    def noted(self: Any, rows: Any) -> Any:
        seen.append(threads())
        return fit_predict(self, rows)

    monkeypatch.setattr(KMeans, "fit_predict", noted)
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    with threadpool_limits(limits=2):
        assert 2 in threads()
        found = clustered(rows, 3, 1)
        assert 2 in threads()
    assert seen == [{1}]
    assert torch.equal(found, clustered(rows, 3, 1))
