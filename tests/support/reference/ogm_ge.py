"""OGM and OGM-GE (Peng et al., CVPR 2022), straight-line and slow, in the paper's notation.

Modalities u = 1..M; z_u = phi_u(x_u) are features, o_u unimodal logits, s_u scores, rho_u discrepancy ratios, k_u
coefficients. Sums are loops.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


def sliced(z: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """o_u = z_u W_u^T + b/M, for a linear head over the concatenated features."""
    logits, start = [], 0
    for z_u in z:
        stop = start + z_u.shape[1]
        logits.append(z_u @ weight[:, start:stop].T + bias / len(z))
        start = stop
    return logits


def zeroed(z: Sequence[Tensor], head: Callable[..., Tensor]) -> list[Tensor]:
    """o_u = H(0, .., z_u, .., 0)."""
    return [head(*[z_v if v == u else 0 * z_v for v, z_v in enumerate(z)]) for u in range(len(z))]


def own(z: Sequence[Tensor], heads: Sequence[nn.Linear]) -> list[Tensor]:
    """o_u = z_u W_u^T + b_u, for a sum of heads."""
    return [z_u @ head.weight.T + head.bias for z_u, head in zip(z, heads, strict=True)]


def score(o_u: Tensor, y: Tensor) -> Tensor:
    """s_u = sum over the batch of softmax(o_u)[y], sample by sample in the precision of the logits."""
    s = o_u.new_zeros(())
    for row, label in zip(o_u, y.tolist(), strict=True):
        s = s + row.softmax(0)[label]
    return s


def ratios(s: Sequence[Tensor], ratio: str = "mean_others") -> list[Tensor]:
    """rho_u = s_u / mean of the other scores, or / the smallest of them."""
    rho = []
    for u, s_u in enumerate(s):
        others = [s_v for v, s_v in enumerate(s) if v != u]
        total = others[0]
        for s_v in others[1:]:
            total = total + s_v
        rho.append(s_u / (total / len(others) if ratio == "mean_others" else min(others)))
    return rho


def is_greater(x: Tensor, y: float) -> bool:
    """x > y by more than rounding: 32 units in the last place."""
    return bool(x > y + 32 * torch.finfo(x.dtype).eps * abs(y))


def coefficients(rho: Sequence[Tensor], alpha: float, tie: str = "first", ratio_shift: float = 0) -> list[float]:
    """k_u = 1 - tanh(alpha * relu(rho_u - shift)) where rho_u > 1, else 1; if no modality is ahead, the first is."""
    ahead = [is_greater(rho_u, 1) for rho_u in rho]
    if tie == "first" and not any(ahead):
        ahead[0] = True
    return [
        (1 - torch.tanh(alpha * torch.relu(rho_u - ratio_shift))).item() if is_ahead else 1.0
        for rho_u, is_ahead in zip(rho, ahead, strict=True)
    ]


def is_modulated(parameter: Tensor, param_filter: str) -> bool:
    """The authors' code takes convolutions only; "matrix" takes all weights, "all" biases and norms too."""
    return {"conv": parameter.dim() == 4, "matrix": parameter.dim() > 1, "all": True}[param_filter]


def sigma(gradient: Tensor) -> float:
    """Unbiased standard deviation over the elements of one tensor, + 1e-8."""
    elements = gradient.double().flatten().tolist()
    return (statistics.stdev(elements) if len(elements) > 1 else 0.0) + 1e-8


@dataclass(kw_only=True)
class Twin:
    """One training with OGM, or with OGM-GE where ``generator`` gives the source of the noise of a step.

    ``encode`` maps the inputs to z_1..z_M, ``head`` maps these to the fused logits, ``unimodal`` to o_1..o_M.
    """

    encoders: Sequence[nn.Module]
    encode: Callable[..., list[Tensor]]
    head: Callable[..., Tensor]
    unimodal: Callable[[list[Tensor]], list[Tensor]]
    inner: Optimizer
    alpha: float = 0.8
    param_filter: str = "conv"
    ratio: str = "mean_others"
    tie: str = "first"
    ratio_shift: float = 0
    start_epoch: int = 0
    end_epoch: int | None = 50
    generator: Callable[[int], torch.Generator] | None = None
    noise_on: str = "both"
    noise_source: str = "raw"
    noise_scale: float = 1.0
    epoch: int = 0
    steps: int = 0

    def step(self, inputs: Sequence[Tensor], y: Tensor) -> None:
        """Train on one batch."""
        self.inner.zero_grad()
        z = self.encode(*inputs)
        F.cross_entropy(self.head(*z), y).backward()
        last = math.inf if self.end_epoch is None else self.end_epoch
        if self.start_epoch <= self.epoch <= last:
            with torch.no_grad():
                s = [score(o_u, y) for o_u in self.unimodal([z_u.detach() for z_u in z])]
            self.modulate(coefficients(ratios(s, self.ratio), self.alpha, self.tie, self.ratio_shift))
        self.inner.step()

    def modulate(self, k: Sequence[float]) -> None:
        """g <- k_u g + noise, tensor by tensor."""
        generator = self.generator(self.steps) if self.generator is not None else None
        self.steps += 1
        for phi_u, k_u in zip(self.encoders, k, strict=True):
            for parameter in phi_u.parameters():
                g = parameter.grad
                if g is None or not is_modulated(parameter, self.param_filter):
                    continue
                modulated = k_u * g
                if generator is not None:
                    epsilon = torch.randn(g.shape, generator=generator, dtype=g.dtype)
                    spread = self.noise_scale * sigma(g if self.noise_source == "raw" else modulated)
                    if self.noise_on == "both" or is_greater(-g.new_tensor(k_u), -1):
                        modulated = modulated + spread * epsilon
                parameter.grad = modulated
