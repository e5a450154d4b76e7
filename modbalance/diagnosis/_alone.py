"""Logits of one modality alone in the joint model, in several ways, which differ in what stands for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from modbalance.context import Batch

Features = Mapping[str, Tensor]

WAYS = {
    "own": "the way of `unimodal=`: own heads or a callable",
    "slice": "part of a linear head, z_i W_i^T + b/M",
    "zero": "the fusion with the other features zero",
    "mean": "the fusion with the other features at their mean over the batch",
    "permuted": "the fusion with the other features of other samples of the batch",
    "inputs": "the model with the other inputs at their mask value",
}
"""Ways to obtain the logits of one modality alone, and what they are."""


def ways_of(batch: Batch) -> list[str]:
    """Return the ways that the model of this batch admits."""
    unimodal, structure = batch.run._training.unimodal, batch.run._training.structure
    found = ["own"] if unimodal.kind in ("heads", "callable") else []
    features = batch.features if set(batch.features) == set(batch.run.modalities) else {}
    if features and unimodal._linear(features) is not None and _adds_up(batch):
        found.append("slice")
    if features and (structure.fusion or structure.fusion_callable is not None):
        found += ["zero", "mean", "permuted"]
    return [*found, "inputs"]


def _adds_up(batch: Batch) -> bool:
    unimodal = batch.run._training.unimodal
    if unimodal.kind == "slice":
        return True
    if not unimodal.chooses:
        return False
    unimodal.logits(batch.features, batch.logits, batch.forward)
    return unimodal.kind == "slice"


def logits_alone(batch: Batch, way: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the logits of each modality alone, (B, C, ...) each."""
    if way == "inputs":
        return {name: batch.coalition_logits([name]) for name in batch.run.modalities}
    unimodal = batch.run._training.unimodal
    if way in ("own", "slice"):
        return {**unimodal._by_kind(unimodal.kind if way == "own" else "slice", batch.features, batch.forward)}
    replace = _replacement(way, len(batch.logits), generator)
    return {name: fused(batch, [name], replace) for name in batch.run.modalities}


def fused(batch: Batch, present: list[str], replace: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the logits of the fusion in eval mode with replaced features of the modalities that are not present."""
    features = {name: f if name in present else replace(f) for name, f in batch.features.items()}
    return batch.run._training.rerun.fuse(features, batch.forward, training=False)


def _replacement(way: str, size: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    if way == "zero":
        return torch.zeros_like
    if way == "mean":
        return lambda feature: feature.mean(0, keepdim=True).expand_as(feature)
    # A rotation of a random order: no sample keeps its own features, if there are two.
    order = torch.randperm(size, generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return lambda feature: feature[other.to(feature.device)]
