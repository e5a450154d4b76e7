"""InfoReg (Huang et al., CVPR 2025) as its code has it, straight-line and slow: a backward for each loss.

Modalities u = 1..M with encoders phi_u; o_u are unimodal logits, s_u scores, T_u(e) traces of the Fisher information.
"""

from __future__ import annotations

import copy
import math
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
    strength: Sequence[float]
    threshold: float = 0.05
    window: int = 10
    unimodal_weight: float = 1.0
    window_of: str = "first"
    gap: str = "sum"
    against: str = "mean_others"
    trace_of_regulated: bool = True
    before_regulation: Callable[[], None] = lambda: None
    history: list[list[float]] = field(default_factory=list)

    def start_epoch(self) -> None:
        self.anchors = [copy.deepcopy(phi_u) for phi_u in self.encoders]
        self.sums = [0.0 for _ in self.encoders]
        self.k = [self.change(u) for u in range(len(self.encoders))]

    def change(self, u: int) -> float:
        """k_u of this epoch, from the traces of those before; a trace before the first epoch is 0."""
        if not self.history:
            return 1.0
        own = {"first": lambda t: t[0], "each": lambda t: t[u], "joint": sum}[self.window_of]
        traces = [0.0] * (self.window + 1) + [own(t) for t in self.history]
        total = sum(traces[-self.window :])
        return (traces[-1] - traces[-1 - self.window]) / total if total else math.nan

    def step(self, inputs: Sequence[Tensor], y: Tensor) -> None:
        """Train on one batch."""
        self.inner.zero_grad()
        z = self.encode(*inputs)
        o = self.unimodal(z)
        for o_u in o:
            (self.unimodal_weight * F.cross_entropy(o_u, y)).backward(retain_graph=True)
        F.cross_entropy(self.fusion(*z), y).backward()
        self.before_regulation()
        size = len(y) if self.gap == "mean" else 1
        s = [sum(o_u.detach().softmax(1)[b, y_b].item() for b, y_b in enumerate(y.tolist())) / size for o_u in o]
        for u, phi_u in enumerate(self.encoders):
            others = s[:u] + s[u + 1 :]
            gap = s[u] - (max(others) if self.against == "best" else sum(others) / len(others))
            if not self.trace_of_regulated:
                self.sums[u] += squares(phi_u)
            if gap > 1e-6 and self.k[u] > self.threshold:
                beta = self.strength[u] * math.exp(math.tanh(gap))
                for parameter, anchor in zip(phi_u.parameters(), self.anchors[u].parameters(), strict=True):
                    if parameter.grad is not None:
                        parameter.grad = parameter.grad + beta * (parameter.detach() - anchor.detach())
            if self.trace_of_regulated:
                self.sums[u] += squares(phi_u)
        self.inner.step()

    def end_epoch(self) -> None:
        self.history.append(self.sums)


def squares(encoder: nn.Module) -> float:
    """Sum over layers of the mean over elements of g^2, of weights alone."""
    weights = [p.grad for p in encoder.parameters() if p.grad is not None and p.dim() >= 2]
    return sum(float(g.double().square().mean()) for g in weights)
