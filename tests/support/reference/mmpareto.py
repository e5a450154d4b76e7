"""MMPareto (Wei and Hu, ICML 2024), straight-line and slow: a backward for each loss, numbers read on the host.

Modalities u = 1..M with encoders phi_u; o_u are unimodal logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(kw_only=True)
class Twin:
    """One training. ``encode`` maps the inputs to z_1..z_M, ``fusion`` these to logits, ``unimodal`` to o_1..o_M."""

    encoders: Sequence[nn.Module]
    encode: Callable[..., list[Tensor]]
    fusion: Callable[..., Tensor]
    unimodal: Callable[[list[Tensor]], list[Tensor]]
    inner: Optimizer
    gamma: float = 1.5
    rescale: str = "tensor"
    heads: str = "own"
    weights: list[float] = field(default_factory=list)

    def step(self, inputs: Sequence[Tensor], y: Tensor) -> None:
        """Train on one batch."""
        self.inner.zero_grad()
        z = self.encode(*inputs)
        o = self.unimodal(z)
        fused = F.cross_entropy(self.fusion(*z), y)
        losses = [F.cross_entropy(o_u, y) for o_u in o]
        fused.backward(retain_graph=True)
        g = [gradients_of(phi_u) for phi_u in self.encoders]
        of_others = [(p, p.grad) for p in self.others()]
        u = []
        for phi_u, loss in zip(self.encoders, losses, strict=True):
            self.inner.zero_grad()
            loss.backward(retain_graph=True)
            u.append(gradients_of(phi_u))
        self.inner.zero_grad()
        (fused + sum(losses)).backward()
        if self.heads == "slice":
            for p, gradient in of_others:
                p.grad = gradient
        for phi_u, g_u, u_u in zip(self.encoders, g, u, strict=True):
            self.combine(phi_u, g_u, u_u)
        self.inner.step()

    def others(self) -> list[Tensor]:
        inside = {id(p) for phi_u in self.encoders for p in phi_u.parameters()}
        return [p for group in self.inner.param_groups for p in group["params"] if id(p) not in inside]

    def combine(self, encoder: nn.Module, g: list[Tensor], u: list[Tensor]) -> None:
        a, b, d = dot(g, g), dot(g, u), dot(u, u)
        c = 0.5
        if b <= 0:
            c = 0.999 if b >= a else 0.001 if b >= d else (d - b) / (a + d - 2 * b)
        self.weights.append(c)
        h = [2 * c * g_p + 2 * (1 - c) * u_p for g_p, u_p in zip(g, u, strict=True)]
        s = [g_p + u_p for g_p, u_p in zip(g, u, strict=True)]
        for p, s_p, h_p in zip(encoder.parameters(), s, h, strict=True):
            own = s if self.rescale == "encoder" else [s_p], h if self.rescale == "encoder" else [h_p]
            before, after = (dot(each, each) ** 0.5 for each in own)
            factor = max(1.0, before / after) if after and self.rescale != "none" else 1.0
            p.grad = self.gamma * factor * h_p


def gradients_of(encoder: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]


def dot(one: list[Tensor], other: list[Tensor]) -> float:
    return sum(float((x * y).sum()) for x, y in zip(one, other, strict=True))
