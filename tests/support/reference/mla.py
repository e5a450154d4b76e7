"""MLA (Zhang et al., CVPR 2024), straight-line and slow: a step per modality, the projection entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(kw_only=True)
class Twin:
    """One training. ``features`` maps inputs to z_1..z_M, ``head`` each to logits; ``last`` is its last layer."""

    features: Callable[..., list[Tensor]]
    head: nn.Module
    last: nn.Linear
    inner: Optimizer
    projection: str = "off"
    idle: str = "skip"
    steps_per_epoch: int | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    P: list[list[Tensor]] = field(default_factory=list)
    calls: int = 0
    index: int = 0

    def step(self, inputs: Sequence[Tensor], y: Tensor) -> None:
        """Train on one batch."""
        self.inner.zero_grad()
        for z_m in self.features(*inputs):
            entered: list[Tensor] = []
            handle = self.last.register_forward_pre_hook(lambda module, args, seen=entered: seen.append(args[0]))
            self.loss(self.head(z_m), y).backward()
            handle.remove()
            if self.projection != "off":
                self.project(entered[0].detach())
            self.calls += 1
            self.inner.step()
            self.inner.zero_grad(set_to_none=self.idle == "skip")
        self.inner.zero_grad()
        self.index += 1

    def project(self, x: Tensor) -> None:
        """Turn the gradient of the last layer's weight by P, which the mean input of this modality updates first."""
        r = [sum(row[i] for row in x) / len(x) for i in range(x.shape[1])]
        if not self.P:
            self.P = [[x.new_tensor(float(i == j)) for j in range(len(r))] for i in range(len(r))]
        if self.calls:
            alpha = 0.1 ** (1 + self.index / self.steps_per_epoch) if self.steps_per_epoch else 0.1
            self.P = updated(self.P, r, alpha, self.projection)
            g = self.last.weight.grad
            assert g is not None
            rows = [[sum(g_c[j] * P_i[j] for j in range(len(r))) for P_i in self.P] for g_c in g.clone()]
            g.copy_(torch.stack([torch.stack(row) for row in rows]))


def updated(P: list[list[Tensor]], r: list[Tensor], alpha: float, form: str) -> list[list[Tensor]]:
    """P after a call with the mean feature r."""
    n = range(len(r))
    k: list[Tensor] = [torch.stack([P[i][j] * r[j] for j in n]).sum() for i in n]
    if form == "rls":
        scalar = alpha + torch.stack([r[j] * k[j] for j in n]).sum()
        return [[P[i][j] - k[i] * k[j] / scalar for j in n] for i in n]
    new = [[P[i][j] - k[i] * k[j] / (alpha + k[i] * r[j]) for j in n] for i in n]
    norm = torch.stack([entry**2 for row in new for entry in row]).sum().sqrt()
    return [[entry / norm for entry in row] for row in new]


def weights(o: Sequence[Tensor], how: str) -> Tensor:
    """Weights of the modalities for logits (B, C) each: (M,) by ``batch_entropy``, (B, M) by ``sample_entropy``."""
    if how == "batch_entropy":
        p = [each.softmax(0) for each in o]
        return torch.stack([(p_m * p_m.log()).sum() for p_m in p]).softmax(0)
    H = torch.stack([-(each.softmax(1) * each.log_softmax(1)).sum(1) for each in o], 1)
    e = (H.amax(1, keepdim=True) - H).exp()
    return e / e.sum(1, keepdim=True)
