"""AGM (Li et al., ICCV 2023), straight-line and slow, in the paper's notation.

Modalities i = 1..M, N all of them. f(S) are the logits with the inputs of the modalities outside of S set to zero, for
all 2^M coalitions S; m_i Shapley outputs, s_i scores, r_i ratios, tau_i reference ratios, kappa_i scales. Scores and
scales are Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

Part = tuple[Sequence[Tensor], Tensor]


def shapley_weights(modalities: int) -> list[dict[frozenset[int], float]]:
    """c_i(S): m_i is the mean over all orders of what i adds to those before it, and a share of f(nothing)."""
    orders = list(permutations(range(modalities)))
    weights: list[dict[frozenset[int], float]] = [{frozenset(): 1 / modalities} for _ in range(modalities)]
    for order in orders:
        for place, i in enumerate(order):
            before = frozenset(order[:place])
            for S, sign in ((before | {i}, 1), (before, -1)):
                weights[i][S] = weights[i].get(S, 0.0) + sign / len(orders)
    return weights


def score(m_i: Tensor, y: Tensor, p_min: float) -> float:
    """s_i = mean over the samples of -log softmax(m_i)[y], the probability being p_min at least."""
    total = 0.0
    for row, label in zip(m_i.detach(), y.tolist(), strict=True):
        p = max(row.softmax(0)[label].item(), p_min)
        total += -math.log(p) if p > 0 else math.inf
    return total / len(m_i)


def ratios(s: Sequence[float]) -> list[float]:
    """r_i = exp(mean of the other scores - s_i)."""
    others = [[s_j for j, s_j in enumerate(s) if j != i] for i in range(len(s))]
    return [exp(sum(o) / len(o) - s_i) for o, s_i in zip(others, s, strict=True)]


def exp(x: float) -> float:
    """Like tensors: infinite where Python overflows."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


@dataclass(kw_only=True)
class Twin:
    """One training with AGM. ``head`` are the weights that the conditional clip looks at."""

    model: nn.Module
    head: Sequence[Tensor]
    inner: Optimizer
    modalities: int
    alpha: float = 1.0
    start_epoch: int = 0
    end_epoch: int | None = 19
    after_window: str = "reset"
    max_gap: float | None = 10.0
    p_min: float = 1e-8
    include_current: bool = False
    masked_mode: str = "eval"
    masked_pass_grad: bool = True
    clip_trigger: float | None = 1.0
    clip_norm: float = 1.0
    epoch: int = 0
    t: int = 0
    S: list[float] = field(default_factory=list)
    kappa: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.S = self.S or [0.0] * self.modalities
        self.kappa = [1.0] * self.modalities

    def step(self, parts: Sequence[Part]) -> None:
        """Train on one batch, given as micro-batches of one size."""
        self.inner.zero_grad()
        in_window = self.start_epoch <= self.epoch <= (math.inf if self.end_epoch is None else self.end_epoch)
        is_frozen = self.after_window == "freeze" and self.epoch >= self.start_epoch and not in_window
        scores, kappas = [], []
        for inputs, y in parts:
            T = self.model(*inputs)
            f = self.masked(inputs)
            f[frozenset(range(self.modalities))] = T
            s = [score(self.total(c_i, f), y, self.p_min) for c_i in shapley_weights(self.modalities)]
            kappa = self.scale(s) if in_window else self.kappa if is_frozen else [1.0] * self.modalities
            self.backward(f, T, y, kappa, 1 / len(parts))
            scores.append(s)
            kappas.append(kappa)
        if in_window or is_frozen:
            self.kappa = [sum(each) / len(parts) for each in zip(*kappas, strict=True)]
            self.clip()
        self.S, self.t = self.updated([sum(each) / len(parts) for each in zip(*scores, strict=True)])
        self.inner.step()

    def masked(self, inputs: Sequence[Tensor]) -> dict[frozenset[int], Tensor]:
        """f(S) for every S but N, each by a pass of the whole model that changes no buffer and draws nothing."""
        f = {}
        flags = {module: module.training for module in self.model.modules()}
        if self.masked_mode == "eval":
            self.model.eval()
        for size in range(self.modalities):
            for S in combinations(range(self.modalities), size):
                masked = tuple(x if i in S else torch.zeros_like(x) for i, x in enumerate(inputs))
                buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
                with torch.random.fork_rng([]):
                    f[frozenset(S)] = torch.func.functional_call(self.model, buffers, masked)
        for module, flag in flags.items():
            module.training = flag
        return f

    def total(self, weights: dict[frozenset[int], float], f: dict[frozenset[int], Tensor]) -> Tensor:
        """sum over S of weight times f(S)."""
        result = torch.zeros_like(next(iter(f.values())))
        for S, weight in weights.items():
            result = result + weight * f[S]
        return result

    def scale(self, s: Sequence[float]) -> list[float]:
        """kappa_i = exp(alpha * min(tau_i - r_i, max_gap)), 1 where something is not finite."""
        tau = ratios(self.updated(s)[0] if self.include_current else self.S)
        kappa = []
        for tau_i, r_i in zip(tau, ratios(s), strict=True):
            gap = tau_i - r_i if self.max_gap is None else min(tau_i - r_i, self.max_gap)
            kappa_i = exp(self.alpha * gap)
            kappa.append(kappa_i if math.isfinite(kappa_i) and all(map(math.isfinite, s)) else 1.0)
        return kappa

    def backward(
        self, f: dict[frozenset[int], Tensor], T: Tensor, y: Tensor, kappa: Sequence[float], share: float
    ) -> None:
        """dL/df(S) = g * sum_i kappa_i c_i(S), with g = dL/dout, out = sum_i m_i."""
        c = shapley_weights(self.modalities)
        out = T.detach().requires_grad_()
        (g,) = torch.autograd.grad(share * F.cross_entropy(out, y), out)
        weights = {S: sum(k * c_i[S] for k, c_i in zip(kappa, c, strict=True)) for S in f}
        reached = [S for S in f if f[S] is T or self.masked_pass_grad]
        torch.autograd.backward([f[S] for S in reached], [weights[S] * g for S in reached])

    def clip(self) -> None:
        """If an entry of the head's weight gradient is beyond the trigger, clip the joint norm."""
        entries = [entry for weight in self.head if weight.grad is not None for entry in weight.grad.flatten().tolist()]
        trigger = math.inf if self.clip_trigger is None else self.clip_trigger
        trigger *= 1 + 32 * torch.finfo(self.head[0].dtype).eps  # entries that equal it but for rounding are not beyond
        if entries and (max(entries) > trigger or min(entries) < -trigger):
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)

    def updated(self, s: Sequence[float]) -> tuple[list[float], int]:
        """S_i <- S_i (t - 1)/t + s_i/t; scores that are not finite do not count."""
        if not all(map(math.isfinite, s)):
            return self.S, self.t
        t = self.t + 1
        return [S_i * (t - 1) / t + s_i / t for S_i, s_i in zip(self.S, s, strict=True)], t
