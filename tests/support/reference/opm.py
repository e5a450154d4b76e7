"""OPM (Wei et al., T-PAMI 2024), straight-line and slow, one sample at a time, with draws from outside.

Modalities u = 1..M; z_u = phi_u(x_u) are features, o_u unimodal logits, s_u scores, q_u drop rates, beta bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer


def slices(z: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """o_u = z_u W_u^T + b / M, the weights as constants."""
    logits, start = [], 0
    for z_u in z:
        w_u = weight.detach()[:, start : start + z_u.shape[1]]
        logits.append(z_u @ w_u.T + bias.detach() / len(z))
        start += z_u.shape[1]
    return logits


@dataclass(kw_only=True)
class Twin:
    """One training with OPM. ``encode`` maps inputs to z_1..z_M, ``fusion`` and ``unimodal`` these to logits."""

    encode: Callable[..., list[Tensor]]
    fusion: Callable[..., Tensor]
    unimodal: Callable[[list[Tensor]], list[Tensor]]
    inner: Optimizer
    q_base: float = 0.5
    lam: float = 0.5
    theta_gradient: bool = True
    ratio: str = "mean_others"

    def step(self, inputs: Sequence[Tensor], y: Tensor, executed: bool, beta: Sequence[Sequence[float]]) -> list[float]:
        """Train on one batch; returns q_1..q_M."""
        self.inner.zero_grad()
        z = self.encode(*inputs)
        s = [
            torch.stack([F.softmax(o_b, 0)[y_b] for o_b, y_b in zip(o_u, y, strict=True)]).sum()
            for o_u in self.unimodal(z)
        ]
        q = [self.rate(s_u, [s_v for v, s_v in enumerate(s) if v != u]) for u, s_u in enumerate(s)]
        extra = torch.zeros((), dtype=z[0].dtype)
        if executed:
            total = sum(z_u.shape[1] for z_u in z)
            theta = sum((z_u.shape[1] * q_u for z_u, q_u in zip(z, q, strict=True)), torch.zeros(())) / total
            scale = 1 / (1 - theta.item())
            z = [torch.stack([z_b * float(beta[b][u]) * scale for b, z_b in enumerate(z_u)]) for u, z_u in enumerate(z)]
            extra = theta.item() * theta
        loss = F.cross_entropy(self.fusion(*z), y)
        (loss + extra if self.theta_gradient else loss).backward()
        self.inner.step()
        return [q_u.item() for q_u in q]

    def rate(self, s_u: Tensor, others: Sequence[Tensor]) -> Tensor:
        """q_u = clip(q_base (1 + lambda tanh(s_u / s_other - 1)), 0, 1) if s_u is ahead, else 0."""
        s_other = min(others) if self.ratio == "min" else sum(others[1:], others[0]) / len(others)
        r = s_u / s_other
        if not math.isfinite(r.item()) or r.item() <= 1 + 1e-12:
            return torch.zeros((), dtype=s_u.dtype)
        q = self.q_base * (1 + self.lam * torch.tanh(r - 1))
        return q if q.item() <= 1 else torch.ones((), dtype=s_u.dtype)
