"""PMR (Fan et al., CVPR 2023), straight-line and slow, one sample and one class at a time.

Modalities u = 1..M; z_u = phi_u(x_u) are features, P_u[c] the class means of z_u, s_u the score of modality u.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


class Batches(Protocol):
    """A loader: a new order of the batches, inputs and targets, at each iteration."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Sequence[Tensor], Tensor]]: ...


@dataclass(kw_only=True)
class Twin:
    """One training with PMR. ``encode`` maps the inputs to z_1..z_M, ``fusion`` these to the fused logits."""

    model: nn.Module
    encode: Callable[..., list[Tensor]]
    fusion: Callable[..., Tensor]
    inner: Optimizer
    classes: int
    alpha: float = 1.0
    momentum: float = 0.2
    fraction: float = 0.1
    coefficient: str = "binary"
    start_epoch: int = 0
    end_epoch: float = 100
    epoch: int = 0
    prototypes: list[dict[int, Tensor]] = field(default_factory=list)

    def step(self, inputs: Sequence[Tensor], y: Tensor) -> list[float]:
        """Train on one batch; returns s_1..s_M."""
        self.inner.zero_grad()
        z = self.encode(*inputs)
        loss = F.cross_entropy(self.fusion(*z), y)
        scores: list[float] = []
        if self.prototypes and self.start_epoch <= self.epoch <= self.end_epoch:
            found = [self.classify(z_u, p_u, y) for z_u, p_u in zip(z, self.prototypes, strict=True)]
            scores = [sum(right.item() for right, _ in each) / len(each) if each else 0.0 for each in found]
            for s_u, each in zip(scores, found, strict=True):
                behind = max(scores) / s_u - 1 if s_u else 0.0
                weight = min(1.0, behind) if self.coefficient == "clip" else float(behind > 1e-6)
                if each and weight > 0:
                    loss = loss + self.alpha * weight * torch.stack([l_b for _, l_b in each]).mean()
        loss.backward()
        self.inner.step()
        return scores

    def classify(self, z_u: Tensor, prototypes: dict[int, Tensor], y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Probability of the target and loss of each sample whose class has a prototype."""
        known = sorted(prototypes)
        found = []
        for z_b, y_b in zip(z_u, y.tolist(), strict=True):
            if y_b in known:
                d = torch.stack([-torch.linalg.vector_norm(z_b - prototypes[c]) for c in known])
                log_p = d[known.index(y_b)] - torch.logsumexp(d, 0)
                found.append((log_p.detach().exp(), -log_p))
        return found

    def renew(self, loader: Batches) -> None:
        """Means of a part of the data, in a copy of the model in eval mode."""
        was_training = self.model.training
        buffers = copy.deepcopy(dict(self.model.named_buffers()))
        self.model.eval()
        rows: list[dict[int, list[Tensor]]] = []
        for inputs, y in islice(loader, max(1, int(self.fraction * len(loader) + 1e-9))):
            with torch.no_grad():
                z = self.encode(*inputs)
            rows = rows or [{} for _ in z]
            for z_u, rows_u in zip(z, rows, strict=True):
                for z_b, y_b in zip(z_u, y.tolist(), strict=True):
                    if 0 <= y_b < self.classes:
                        rows_u.setdefault(y_b, []).append(z_b)
        self.model.train(was_training)
        assert all(torch.equal(value, buffers[name]) for name, value in self.model.named_buffers())
        new = [{c: torch.stack(each).mean(0) for c, each in rows_u.items()} for rows_u in rows]
        old = self.prototypes or new
        share = self.momentum if self.epoch else 0.0
        self.prototypes = [
            old_u | {c: (1 - share) * p + share * old_u.get(c, p) for c, p in new_u.items()}
            for old_u, new_u in zip(old, new, strict=True)
        ]

    def end_epoch_with(self, loader: Batches) -> None:
        self.renew(loader)
        self.epoch += 1
