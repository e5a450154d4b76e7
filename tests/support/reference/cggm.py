"""CGGM (Guo et al., NeurIPS 2024), straight-line and slow, in the paper's notation.

Modalities i = 1..M; h_i are features, f_i probes on them, epsilon_i their metrics, Delta_i improvements, B_i
coefficients, W the weight of the head, W_i that of the last layer of f_i. The direction term is differentiated by
autograd, on a graph that is kept from one step to the next, as the authors do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


def accuracy(o: Tensor, y: Tensor) -> float:
    hits = [int(row.argmax()) == label for row, label in zip(o, y.tolist(), strict=True)]
    return sum(hits) / len(hits)


def sign(o: Tensor, y: Tensor) -> float:
    hits = [(a > 0) == (b > 0) for a, b in zip(o.flatten().tolist(), y.flatten().tolist(), strict=True)]
    return sum(hits) / len(hits)


def dice(o: Tensor, y: Tensor, regions: Sequence[Sequence[int]]) -> float:
    """Mean over regions of the mean over samples of (2 |P and T| + 2e-3) / (|P| + |T| + 2e-3)."""
    means = []
    for region in regions:
        values = []
        for prediction, truth in zip(o.argmax(1).flatten(1).tolist(), y.flatten(1).tolist(), strict=True):
            p, t = [label in region for label in prediction], [label in region for label in truth]
            both = sum(a and b for a, b in zip(p, t, strict=True))
            values.append((2 * both + 2e-3) / (sum(p) + sum(t) + 2e-3))
        means.append(sum(values) / len(values))
    return sum(means) / len(means)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0, eps=1e-8)


@dataclass(kw_only=True)
class Twin:
    """One training with CGGM.

    ``encode`` maps the inputs to h_1..h_M, ``head`` these to logits; ``out`` is the layer of W, ``lasts`` those of
    W_i; ``slices`` are the columns of W that each W_i is compared with, ``None``: all.
    """

    encoders: Sequence[nn.Module]
    encode: Callable[..., list[Tensor]]
    head: Callable[..., Tensor]
    probes: Sequence[nn.Module]
    run_probe: Callable[[nn.Module, Tensor, Tensor], Tensor]
    out: Any
    lasts: Sequence[Any]
    inner: Optimizer
    probe_inner: Optimizer
    slices: Sequence[slice] | None = None
    task_loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    metric: Callable[[Tensor, Tensor], float] = accuracy
    rho: float = 1.3
    lam: float = 0.2
    direction: str = "weight"
    direction_delay: int = 1
    coeff_clip: tuple[float, float] | None = None
    metric_ema: float = 0.0
    probe_eval: bool = False
    clip: float | None = 0.8
    epsilon: list[float] | None = None
    b: list[float] | None = None
    l_gm: Tensor | None = None

    def step(self, inputs: Sequence[Tensor], y: Tensor) -> None:
        """Train on one batch."""
        self.inner.zero_grad()
        h = self.encode(*inputs)
        o = self.head(*h)
        loss = self.task_loss(o, y)

        self.probe_inner.zero_grad()
        guesses = [self.run_probe(f, h_i.detach(), o) for f, h_i in zip(self.probes, h, strict=True)]
        losses = [self.task_loss(guess, y) for guess in guesses]
        torch.autograd.backward(losses)
        if self.probe_eval:
            guesses = [self.evaluated(f, h_i.detach(), o) for f, h_i in zip(self.probes, h, strict=True)]

        before_b, b = self.b, self.balance([self.metric(guess, y) for guess in guesses])
        term = self.term(loss, before_b, b) if self.lam > 0 else None
        (loss if term is None else loss + self.lam * term).backward()

        for phi_i, b_i in zip(self.encoders, b, strict=True):
            for parameter in phi_i.parameters():
                if parameter.grad is not None:
                    parameter.grad *= self.rho * b_i
        self.probe_inner.step()
        if self.clip is not None:
            nn.utils.clip_grad_norm_([p for group in self.inner.param_groups for p in group["params"]], self.clip)
        self.inner.step()

    def balance(self, measured: list[float]) -> list[float]:
        """B_i = (S - Delta_i) / S with S = sum of Delta_j + 1e-8."""
        before = self.epsilon or [0.0] * len(measured)
        self.epsilon = [
            self.metric_ema * old + (1 - self.metric_ema) * new for old, new in zip(before, measured, strict=True)
        ]
        delta = [new - old for new, old in zip(self.epsilon, before, strict=True)]
        s = 0.0
        for delta_i in delta:
            s = s + delta_i
        s = s + 1e-8
        self.b = [(s - delta_i) / s for delta_i in delta]
        if self.coeff_clip is not None:
            low, high = self.coeff_clip
            self.b = [min(max(b_i, low), high) for b_i in self.b]
        return self.b

    def term(self, loss: Tensor, before_b: list[float] | None, b: list[float]) -> Tensor | None:
        """l_gm as it enters the loss of this step."""
        if self.direction == "weight":
            before, self.l_gm = self.l_gm, self.compared(self.out.weight.clone(), [f.weight for f in self.lasts], b)
            return before if self.direction_delay else self.l_gm
        used = before_b if self.direction_delay else b
        if used is None:
            return None
        (g,) = torch.autograd.grad(loss, self.out.weight, create_graph=True)
        return self.compared(g, [f.weight.grad for f in self.lasts], used)

    def compared(self, w: Tensor, w_i: Sequence[Tensor], b: list[float]) -> Tensor:
        """l_gm = 1/M (sum of |B_i| - sum of B_i cos(w_i, w))."""
        total = w.new_zeros(())
        for index, (u, b_i) in enumerate(zip(w_i, b, strict=True)):
            part = w if self.slices is None else w[:, self.slices[index]]
            total = total + abs(b_i) - b_i * cosine(u.detach().clone(), part)
        return total / len(b)

    def evaluated(self, f: nn.Module, h_i: Tensor, o: Tensor) -> Tensor:
        """The probe's answer in eval mode."""
        f.eval()
        with torch.no_grad():
            guess = self.run_probe(f, h_i, o)
        f.train()
        return guess
