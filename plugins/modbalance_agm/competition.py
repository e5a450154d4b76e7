"""Competition strength of a modality: how much of its own concept joint training has lost.

Source: the metric of mono-modal concepts in the paper of AGM (ICCV 2023), as the code of its authors computes it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def competition_metric(
    dep_features: Tensor,
    dep_concept: Tensor,
    test_features: Tensor,
    test_concept: Tensor,
    *,
    alpha: float = 120.0,
) -> Tensor:
    """Return d_i, 0-dim fp64: 0 if the unimodal concept can be read off the multimodal features, about 1 if not at all.

    The concept Y^i of modality i is regressed on the multimodal features F by ridge regression with intercept,
    W = (Fc^T Fc + alpha I)^-1 Fc^T Yc with centred Fc, Yc; then, with the residual R of its prediction on test data
    and the unbiased covariance over the N test samples,

        d_i = tr(pinv(N Cov(Y^i)) R^T R) / D.

    Predicting the mean gives (N - 1) / N * rank(Cov) / D.

    Args:
        dep_features: F on the data that the regression is fitted to, (N_dep, K): features of the multimodal model in
            eval mode.
        dep_concept: Y^i there, (N_dep, D): features or outputs of a model trained on modality i alone.
        test_features: F on the test data, (N, K).
        test_concept: Y^i there, (N, D); N >= 2.
        alpha: Ridge penalty, >= 0; the intercept is not penalised.
    """
    f, y, f_test, y_test = (t.detach().double() for t in (dep_features, dep_concept, test_features, test_concept))
    f_mean, y_mean = f.mean(0), y.mean(0)
    centred = f - f_mean
    gram = centred.T @ centred + alpha * torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    ridge = torch.linalg.solve(gram, centred.T @ (y - y_mean))  # W
    residual = (f_test - f_mean) @ ridge + y_mean - y_test  # R
    count, size = y_test.shape
    spread = count * torch.cov(y_test.T).reshape(size, size)  # N Cov(Y^i)
    return torch.trace(torch.linalg.pinv(spread, hermitian=True) @ residual.T @ residual) / size  # d_i
