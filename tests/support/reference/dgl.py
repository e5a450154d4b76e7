"""DGL (Wei et al., ICCV 2025), straight-line and slow, in the paper's notation: two backwards, a wiped fusion.

Modalities u = 1..M; z_u = phi_u(x_u) are features, o_u unimodal logits, H the fusion, sg a stopped gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


def zeroed(z: Sequence[Tensor], head: Callable[..., Tensor]) -> list[Tensor]:
    """o_u = H(0, .., z_u, .., 0), with the full bias of the head."""
    return [head(*[z_v if v == u else z_v.new_zeros(z_v.shape) for v, z_v in enumerate(z)]) for u in range(len(z))]


def own(z: Sequence[Tensor], heads: Sequence[nn.Module]) -> list[Tensor]:
    """o_u = z_u W_u^T + b_u, for a sum of heads."""
    return [head(z_u) for z_u, head in zip(z, heads, strict=True)]


@dataclass(kw_only=True)
class Twin:
    """One training with DGL.

    ``encode`` maps the inputs to z_1..z_M, ``unimodal`` these to o_1..o_M, ``fused`` to H with a cut on the way: by
    default of the features.
    """

    fusion: nn.Module
    encode: Callable[..., list[Tensor]]
    unimodal: Callable[[list[Tensor]], list[Tensor]]
    inner: Optimizer
    fused: Callable[[list[Tensor]], Tensor] | None = None
    alpha: float = 4.0
    clip: float | None = 40.0

    def step(self, inputs: Sequence[Tensor], y: Tensor, micro: int = 1) -> None:
        """Train on one batch, in ``micro`` parts."""
        self.inner.zero_grad()
        kept: dict[nn.Parameter, Tensor] = {}
        for parts in zip(*(x.chunk(micro) for x in (*inputs, y)), strict=True):
            *x, label = parts
            z = self.encode(*x)

            l_u = self.alpha * sum_of([F.cross_entropy(o_u, label) for o_u in self.unimodal(z)])
            (l_u / micro).backward()
            for parameter in self.fusion.parameters():
                parameter.grad = kept.get(parameter)

            out = self.fused(z) if self.fused is not None else self.fusion(*[z_u.detach() for z_u in z])
            (F.cross_entropy(out, label) / micro).backward()
            kept = {p: p.grad.clone() for p in self.fusion.parameters() if p.grad is not None}
        if self.clip is not None:
            nn.utils.clip_grad_norm_([p for group in self.inner.param_groups for p in group["params"]], self.clip)
        self.inner.step()


def sum_of(losses: Sequence[Tensor]) -> Tensor:
    """l_1 + .. + l_M."""
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
