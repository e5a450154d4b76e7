"""OGM with coefficients on the update: p <- p + d + k_u (p_new - p - d), straight-line and slow.

The optimizers are written out: each rule gives the update u of a parameter and its decoupled weight decay d apart.
Symbols are those of torch's documentation: g gradient, m and v averages, t number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from support.reference.ogm_ge import Twin, is_modulated


@dataclass(kw_only=True)
class Rule:
    """Plain descent, with momentum mu and weight decay in the gradient."""

    parameters: Iterable[nn.Parameter]
    lr: float
    wd: float = 0.0
    mu: float = 0.0
    k: dict[int, float] = field(default_factory=dict)
    state: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = list(self.parameters)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        for p in self.parameters:
            if p.grad is None:
                continue
            s = self.state.setdefault(id(p), {"t": 0})
            s["t"] += 1
            u, d = self.update(p.detach(), p.grad, s)
            p.data = p.detach() + d + self.k.get(id(p), 1.0) * u
        self.k = {}

    def update(self, p: Tensor, g: Tensor, s: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """b <- mu b + g + wd p; u = -lr b; the decay is in the gradient, so that d = 0."""
        g = g + self.wd * p
        s["b"] = self.mu * s["b"] + g if s["t"] > 1 else g
        return -self.lr * s["b"], torch.zeros_like(p)


@dataclass(kw_only=True)
class AdamRule(Rule):
    """Adam, and AdamW where the decay is decoupled."""

    decoupled: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def update(self, p: Tensor, g: Tensor, s: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """u = -lr m_hat / (sqrt(v_hat) + eps); d = -lr wd p, or wd p in the gradient."""
        beta1, beta2 = self.betas
        d = -self.lr * self.wd * p if self.decoupled else torch.zeros_like(p)
        g = g if self.decoupled else g + self.wd * p
        s["m"] = beta1 * s.get("m", 0) + (1 - beta1) * g
        s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * g * g
        m, v = s["m"] / (1 - beta1 ** s["t"]), s["v"] / (1 - beta2 ** s["t"])
        return -self.lr * m / (v.sqrt() + self.eps), d


@dataclass(kw_only=True)
class RMSpropRule(Rule):
    """RMSprop with momentum."""

    alpha: float = 0.99
    eps: float = 1e-8

    def update(self, p: Tensor, g: Tensor, s: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """b <- mu b + g / (sqrt(v) + eps); u = -lr b."""
        g = g + self.wd * p
        s["v"] = self.alpha * s.get("v", 0) + (1 - self.alpha) * g * g
        s["b"] = self.mu * s.get("b", 0) + g / (s["v"].sqrt() + self.eps)
        return -self.lr * s["b"], torch.zeros_like(p)


@dataclass(kw_only=True)
class MuonRule(Rule):
    """Muon for matrices, plain descent for the others; the decay of matrices is decoupled."""

    def update(self, p: Tensor, g: Tensor, s: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """u = -lr sqrt(max(1, rows / columns)) times the orthogonalised momentum; d = -lr wd p."""
        if p.dim() != 2:
            return -self.lr * g, torch.zeros_like(p)
        s["b"] = self.mu * s.get("b", 0) + (1 - self.mu) * g
        o = orthogonalised((1 - self.mu) * g + self.mu * s["b"])
        return -self.lr * math.sqrt(max(1, p.shape[0] / p.shape[1])) * o.to(p.dtype), -self.lr * self.wd * p


def orthogonalised(x: Tensor) -> Tensor:
    """Five steps of the Newton-Schulz iteration of torch.optim.Muon, in bfloat16 as there."""
    is_tall = x.shape[0] > x.shape[1]
    x = x.bfloat16().T if is_tall else x.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        a = x @ x.T
        x = torch.addmm(x, torch.addmm(a, a, a, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.T if is_tall else x


@dataclass(kw_only=True)
class UpdateTwin(Twin):
    """OGM whose coefficients reach a rule, not the gradients; its gradients are clipped to ``clip`` before."""

    inner: Any
    clip: float | None = None

    def modulate(self, k: Sequence[float]) -> None:
        """Hand k_u to the rule, parameter by parameter."""
        everything = [p for p in self.inner.parameters if p.grad is not None]
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in everything))
        for p in everything:
            p.grad = p.grad * (1 if self.clip is None else min(1.0, self.clip / (norm + 1e-6)))
        for phi_u, k_u in zip(self.encoders, k, strict=True):
            self.inner.k |= {id(p): k_u for p in phi_u.parameters() if is_modulated(p, self.param_filter)}
