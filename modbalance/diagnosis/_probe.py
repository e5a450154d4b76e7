"""Linear probe: a linear classifier on frozen features, scored on samples that it was not trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_PENALTY = 1e-3


def probe_accuracy(features: Tensor, label: Tensor, seed: int) -> float:
    """Return the accuracy of softmax regression in two folds, in [0, 1]: each half is scored by the other.

    Features are standardised by the mean and standard deviation of the training half. The penalty is 1e-3 / 2 times
    the squared weights, the optimizer L-BFGS from zero.

    Args:
        features: (N, D).
        label: Class indices (N,).
        seed: Seed of the split.
    """
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    first, second = order.tensor_split(2)
    hits = sum(_hits(features, label, train, test) for train, test in ((first, second), (second, first)))
    return hits / len(label)


def _hits(features: Tensor, label: Tensor, train: Tensor, test: Tensor) -> int:
    mean, deviation = features[train].mean(0), features[train].std(0, correction=0)
    scaled = (features - mean) / deviation.clamp(min=1e-6)
    weight, bias = fit(scaled[train], label[train], int(label.max()) + 1)
    return int(((scaled[test] @ weight + bias).argmax(1) == label[test]).sum())


@torch.enable_grad()
def fit(features: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return weight (D, C) and bias (C,) of softmax regression with an L2 penalty on the weight."""
    weight = features.new_zeros(features.shape[1], classes, requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, label) + 0.5 * _PENALTY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
