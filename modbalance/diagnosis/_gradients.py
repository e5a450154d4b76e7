"""Gradients of a diagnosis: their norm by encoder, and conflicts between losses.

Gradients conflict if their cosine is negative (Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import attrs
import torch
from torch import Tensor

from modbalance.context import Batch
from modbalance.diagnosis._subject import Subject

Vector = Tensor


@attrs.frozen
class GradientFindings:
    """Norms and cosines of gradients, means over the samples of some batches.

    Attributes:
        norm: By modality, the L2 norm of the gradient of the loss for the parameters of its encoder, >= 0.
        share: By modality, its part of the sum of norms, in [0, 1]; NaN where all are 0.
        with_fused: By modality, the cosine of the gradients of its own loss and of the fused loss, in [-1, 1], for
            its encoder; NaN where one is 0.
        between: By pair, the cosine of the gradients of their own losses for the parameters that both losses use.
    """

    norm: dict[str, float]
    share: dict[str, float]
    with_fused: dict[str, float]
    between: dict[tuple[str, str], float]


def measure_gradients(subject: Subject, items: Iterable[Any]) -> GradientFindings:
    """Return the findings on some batches, in eval mode; gradients of parameters stay as they are."""
    names = subject.modalities
    structure = subject.run._training.structure
    encoders: dict[str, list[Tensor]] = {
        name: [p for _, p in structure.listed(name) if p.requires_grad] for name in names
    }
    owned = {id(p) for parameters in encoders.values() for p in parameters}
    common: list[Tensor] = [p for p in subject.model.parameters() if p.requires_grad and id(p) not in owned]
    common += _shared(encoders)
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in subject.batches(items, with_graph=True):
        count += len(batch.logits)
        for key, vector in _of_batch(batch, encoders, common).items():
            sums[key] = sums[key] + vector if key in sums else vector
    norms = {name: float(sums[f"fused/{name}"].norm()) / count for name in names}
    total = sum(norms.values())
    return GradientFindings(
        norm=norms,
        share={name: norm / total if total else float("nan") for name, norm in norms.items()},
        with_fused={name: cosine(sums[f"fused/{name}"], sums[f"own/{name}"]) for name in names},
        between={(i, j): cosine(sums[f"common/{i}"], sums[f"common/{j}"]) for i, j in combinations(names, 2)},
    )


def cosine(a: Vector, b: Vector) -> float:
    """Return the cosine of two vectors, NaN if one of them is zero or empty."""
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else float("nan")


@torch.enable_grad()
def _of_batch(batch: Batch, encoders: dict[str, list[Tensor]], common: list[Tensor]) -> dict[str, Vector]:
    """Return the gradients of this batch, times its size."""
    assert batch.task_loss is not None
    size = len(batch.logits)
    every = [p for name in encoders for p in encoders[name]]
    of_fused = dict(zip(map(id, every), _gradients(batch.task_loss(batch.logits), every), strict=True))
    found = {f"fused/{name}": size * _flat([of_fused[id(p)] for p in own]) for name, own in encoders.items()}
    alone = _logits_alone(batch)
    for name, own in encoders.items():
        parts = _gradients(batch.task_loss(alone[name]), [*own, *common])
        found[f"own/{name}"] = size * _flat(parts[: len(own)])
        found[f"common/{name}"] = size * _flat(parts[len(own) :])
    return found


def _logits_alone(batch: Batch) -> Mapping[str, Tensor]:
    structure = batch.run._training.structure
    if structure.fusion or structure.fusion_callable is not None or batch.run._training.unimodal.kind == "callable":
        return batch.unimodal_logits_live(frozen_head=False)
    return {name: batch.coalition_logits([name]) for name in batch.run.modalities}


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    if not parameters or not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _flat(tensors: Sequence[Tensor]) -> Vector:
    return torch.cat([t.detach().double().flatten() for t in tensors]) if tensors else torch.zeros(1).double()


def _shared(encoders: dict[str, list[Tensor]]) -> list[Tensor]:
    """Return the parameters that stand in several encoders, each once."""
    counts: dict[int, int] = {}
    by_id = {id(p): p for own in encoders.values() for p in own}
    for own in encoders.values():
        for p in own:
            counts[id(p)] = counts.get(id(p), 0) + 1
    return [by_id[key] for key, count in counts.items() if count > 1]
