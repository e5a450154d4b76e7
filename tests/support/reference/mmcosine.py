"""MMCosine (Xu et al., ICASSP 2023), straight-line and slow, one sample, class and pair at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """cos(a, b) of two vectors."""
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def nearness(a: Tensor, b: Tensor) -> Tensor:
    """1 - |a / |a| - b / |b||^2 / 2 of two vectors, where a zero vector stays one: else cos(a, b)."""
    units = [x / x.square().sum().sqrt() if x.any() else x for x in (a, b)]
    return 1 - (units[0] - units[1]).square().sum() / 2


def logits(z: Sequence[Tensor], weight: Tensor, scale: float) -> list[Tensor]:
    """o_u[b, c] = s cos(z_u[b], W_u[c])."""
    found, start = [], 0
    for z_u in z:
        w_u = weight[:, start : start + z_u.shape[1]]
        found.append(torch.stack([torch.stack([scale * cosine(z_b, w_c) for w_c in w_u]) for z_b in z_u]))
        start += z_u.shape[1]
    return found


def nce(z: Sequence[Tensor], y: Tensor, temperature: float) -> Tensor:
    """Mean over pairs of modalities and over samples of the contrastive term."""
    terms = []
    for z_u, z_v in combinations(z, 2):
        for b, y_b in enumerate(y.tolist()):
            s = torch.stack([nearness(z_u[b], z_j) / temperature for z_j in z_v]).softmax(0)
            near = [-(s[j] + 1e-10).log() for j, y_j in enumerate(y.tolist()) if y_j == y_b]
            far = [-(1 - s[j] + 1e-10).log() for j, y_j in enumerate(y.tolist()) if y_j != y_b]
            terms.append(torch.stack(near).mean() + (torch.stack(far).mean() if far else 0))
    return torch.stack(terms).mean()
