"""LFM (Yang et al., NeurIPS 2024), straight-line and slow, one sample, class and pair of modalities at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


def fitted(e: int) -> float:
    """a_1 of epoch e."""
    terms = (
        3.35472727e-3 * e + 1.22989557e-4 * e**2 - 2.92947416e-6 * e**3 + 2.23835486e-8 * e**4 - 5.39717505e-11 * e**5
    )
    return 0.795376296 - terms


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), one class at a time."""
    return torch.stack([p_c * (p_c.log() - q_c.log()) for p_c, q_c in zip(p, q, strict=True)]).sum()


def alignment(o: Sequence[Tensor], divergence: str = "reversed", pairs: str = "sum") -> Tensor:
    """A of logits o_1..o_M, (B, C) each."""
    terms = []
    for o_u, o_v in combinations(o, 2):
        each = []
        for o_ub, o_vb in zip(o_u, o_v, strict=True):
            p, q = o_ub.softmax(0), o_vb.softmax(0)
            m = (p + q) / 2
            each.append((kl(p, m) + kl(q, m)) / 2 if divergence == "js" else (kl(m, p) + kl(m, q)) / 2)
        terms.append(torch.stack(each).mean())
    total = torch.stack(terms).sum()
    return total if pairs == "sum" else total / len(terms)


@dataclass(kw_only=True)
class Twin:
    """One training. ``unimodal`` maps inputs to o_1..o_M, ``fused`` these and inputs to the logits of the task loss."""

    model: nn.Module
    unimodal: Callable[..., list[Tensor]]
    fused: Callable[[list[Tensor], Sequence[Tensor]], Tensor]
    inner: Optimizer
    divergence: str = "reversed"
    pairs: str = "sum"
    factor: float = 2.0
    a1: float = 0.0
    rate: float = 0.0

    def losses(self, inputs: Sequence[Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
        """K and A."""
        o = self.unimodal(*inputs)
        return F.cross_entropy(self.fused(o, inputs), y), alignment(o, self.divergence, self.pairs)

    def step(self, inputs: Sequence[Tensor], y: Tensor) -> None:
        """Train on one batch."""
        self.inner.zero_grad()
        K, A = self.losses(inputs, y)
        (self.factor * ((1 - self.a1) * K + self.a1 * A)).backward()
        self.inner.step()

    def update(self, epoch: int, inputs: Sequence[Tensor], y: Tensor, first: nn.Parameter) -> None:
        """Update a_1 on the first half of a probe, with the whole Hessian of the weighted loss, row by row."""
        if epoch > 0 and epoch % 20 == 0:
            self.rate /= 2
        half = len(y) // 2
        K, A = self.losses([x[:half] for x in inputs], y[:half])
        parameters = [*self.model.parameters()]
        (g,) = torch.autograd.grad((1 - self.a1) * K + self.a1 * A, [first], create_graph=True)
        k = flat(torch.autograd.grad(K, parameters, retain_graph=True, allow_unused=True), parameters)
        rows = [torch.autograd.grad(g_i, parameters, retain_graph=True, allow_unused=True) for g_i in g.flatten()]
        h = torch.stack([flat(row, parameters) @ k for row in rows]).mean().item()
        self.a1 = min(max(self.a1 - self.rate * h, 0.05), 0.95)


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """One vector of all gradients, zeros where there is none."""
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([each.flatten() for each in filled])


def heuristic(e: int, rate: float) -> float:
    """a_1 of epoch e by the heuristic rule."""
    return min(max(math.exp(-rate * e), 0.05), 0.95)
