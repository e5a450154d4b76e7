"""The competition metric of AGM (Li et al., ICCV 2023), straight-line and slow."""

from __future__ import annotations

from typing import Any

import numpy as np


def competition(f_dep: Any, y_dep: Any, f_test: Any, y_test: Any, *, alpha: float) -> float:
    """d = tr(pinv(B) R^T R) / D with NumPy, the ridge written as least squares with rows for the penalty."""
    f, y = f_dep - f_dep.mean(0), y_dep - y_dep.mean(0)
    rows = np.concatenate([f, np.sqrt(alpha) * np.eye(f.shape[1])])
    values = np.concatenate([y, np.zeros((f.shape[1], y.shape[1]))])
    ridge = np.linalg.lstsq(rows, values, rcond=None)[0]
    r = (f_test - f_dep.mean(0)) @ ridge + y_dep.mean(0) - y_test
    n, d = y_test.shape
    b = n * np.atleast_2d(np.cov(y_test.T))
    total = 0.0
    for sample in r:
        total += float(sample @ np.linalg.pinv(b) @ sample)
    return total / d
