"""Diagnosing & Re-learning in the paper's notation, straight-line and slow.

Modalities u = 1..M; theta_u are the parameters of the encoder phi_u, theta_u_init those before training; P are purities
of clusters, g_u their gap between training and validation data, alpha_u = tanh(lambda g_u). Sums are loops.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

Rows = list[list[float]]
Data = Sequence[tuple[tuple[Tensor, ...], Tensor]]


def scaled(z: Rows) -> Rows:
    """Each dimension to [-1, 1]: its smallest entry becomes -1, its largest 1; a constant one becomes -1."""
    columns = []
    for column in zip(*z, strict=True):
        low, high = min(column), max(column)
        columns.append([2 * (entry - low) / (high - low or 1) - 1 for entry in column])
    return [list(row) for row in zip(*columns, strict=True)]


def purity(z: Rows, y: Sequence[int], k: int, n_init: int, is_sorted: bool) -> float:
    """P = 1/N sum over clusters of the number of samples of its majority class."""
    samples = sorted(zip(z, y, strict=True)) if is_sorted else list(zip(z, y, strict=True))
    z, y = [row for row, _ in samples], [label for _, label in samples]
    cluster = KMeans(n_clusters=k, random_state=0, n_init=n_init).fit_predict(torch.tensor(scaled(z)).double().numpy())
    majority = 0
    for c in range(k):
        classes = Counter(label for label, found in zip(y, cluster, strict=True) if found == c)
        majority += max(classes.values(), default=0)
    return majority / len(y)


def blend_weight(p_train: float, p_val: float, lam: float) -> float:
    """alpha_u = tanh(lambda |P_train - P_val|)."""
    return math.tanh(lam * abs(p_train - p_val))


@dataclass
class Twin:
    """The end of an epoch of a training in which nothing else happens.

    ``encode`` maps the inputs to z_1..z_M, (B, D_u) each.
    """

    model: nn.Module
    encoders: Sequence[nn.Module]
    encode: Callable[..., Sequence[Tensor]]
    k: int
    lam: float = 3.0
    period: int = 20
    count: int = 3
    n_init: int = 10
    is_sorted: bool = True
    epoch: int = 0
    done: int = 0
    alpha: list[float] = field(default_factory=list)
    theta_init: list[list[Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.theta_init = [[p.detach().clone() for p in phi_u.parameters()] for phi_u in self.encoders]

    def features(self, data: Data) -> list[Rows]:
        """z_1..z_M of every sample, in eval mode."""
        self.model.eval()
        z: list[Rows] = [[] for _ in self.encoders]
        for inputs, _ in data:
            with torch.no_grad():
                for rows, z_u in zip(z, self.encode(*inputs), strict=True):
                    rows.extend(z_u.tolist())
        self.model.train()
        return z

    def end_epoch(self, train: Data, val: Data) -> None:
        """Blend theta_u <- alpha_u theta_u_init + (1 - alpha_u) theta_u after epochs period, 2 period, ..."""
        e, self.epoch = self.epoch, self.epoch + 1
        if not (e > 0 and e % self.period == 0 and self.done < self.count):
            return
        self.done += 1
        y_train, y_val = ([label for _, y in data for label in y.tolist()] for data in (train, val))
        self.alpha = [
            blend_weight(
                purity(z_train, y_train, self.k, self.n_init, self.is_sorted),
                purity(z_val, y_val, self.k, self.n_init, self.is_sorted),
                self.lam,
            )
            for z_train, z_val in zip(self.features(train), self.features(val), strict=True)
        ]
        for phi_u, theta_u_init, alpha_u in zip(self.encoders, self.theta_init, self.alpha, strict=True):
            for theta, theta_init in zip(phi_u.parameters(), theta_u_init, strict=True):
                theta.data = alpha_u * theta_init + (1 - alpha_u) * theta.data
