"""Measurements that run over all samples: coalitions, modalities alone, features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from modbalance.context import Batch
from modbalance.diagnosis._alone import logits_alone, ways_of
from modbalance.diagnosis._shapley import Coalition, coalitions_of
from modbalance.diagnosis._subject import Subject
from modbalance.errors import ConfigError
from modbalance.pooling import pooled


@attrs.define(eq=False)
class Samples:
    """Values of all samples that were seen, on the CPU.

    Attributes:
        coalitions: By coalition, the value of each sample, (N,), NaN where no element counts.
        alone: By way, then by modality, the same for the logits of one modality alone.
        features: By modality, (N, D); empty where no hook saw them.
        labels: Class indices (N,), or ``None`` where the task has none per sample.
        classes: Size of dim 1 of the logits.
        batches: Number of batches.
    """

    coalitions: dict[Coalition, Tensor]
    alone: dict[str, dict[str, Tensor]]
    features: dict[str, Tensor]
    labels: Tensor | None
    classes: int
    batches: int


def measure_samples(subject: Subject, items: Iterable[Any], orders: Sequence[Coalition], seed: int) -> Samples:
    """Return the values of all samples; each coalition is computed once for a batch.

    Args:
        subject: The model.
        items: What the loader yields.
        orders: Permutations whose coalitions are needed; none: all coalitions.
        seed: Seed of the permutation of samples.

    Raises:
        ConfigError: The loader yields nothing.
    """
    needed = coalitions_of(subject.modalities, orders)
    generator = torch.Generator().manual_seed(seed)
    ways: list[str] | None = None
    rows: list[dict[tuple[str, Any], Tensor]] = []
    classes = 0
    for batch in subject.batches(items):
        ways = ways_of(batch) if ways is None else ways
        classes = batch.logits.shape[1] if batch.logits.dim() > 1 else 1
        rows.append(_of_batch(subject, batch, needed, ways, generator))
    if ways is None:
        raise ConfigError(
            "The loader should yield batches. Found none: pass one that can be read from its start, not an iterator "
            "that is used up, and look at `drop_last` and `max_batches`."
        )
    keys = [key for key in rows[0] if all(key in row for row in rows)]
    joined = {key: torch.cat([row[key] for row in rows]) for key in keys}
    return Samples(
        coalitions={S: joined["coalition", S] for S in needed},
        alone={way: {name: joined[way, name] for name in subject.modalities} for way in ways},
        features={name: joined["feature", name] for name in subject.modalities if ("feature", name) in joined},
        labels=joined.get(("label", "")),
        classes=classes,
        batches=len(rows),
    )


@torch.no_grad()
def _of_batch(
    subject: Subject, batch: Batch, needed: Sequence[Coalition], ways: Sequence[str], generator: torch.Generator
) -> dict[tuple[str, Any], Tensor]:
    task, everyone = subject.task, subject.modalities
    found: dict[tuple[str, Any], Tensor] = {}
    by_input: dict[Coalition, Tensor] = {everyone: batch.logits}
    for S in needed:
        if S not in by_input:
            by_input[S] = batch.coalition_logits(S)
        found["coalition", S] = task.values(by_input[S], batch.target).cpu()
    for way in ways:
        # The coalitions of one are those of this way, where they were computed.
        known = {name: by_input[name,] for name in everyone if (name,) in by_input} if way == "inputs" else {}
        logits = known if len(known) == len(everyone) else logits_alone(batch, way, generator)
        for name in everyone:
            found[way, name] = task.values(logits[name], batch.target).cpu()
    for name, feature in batch.features.items():
        found["feature", name] = pooled(feature.detach()).float().cpu()
    target = batch.target
    if task.score is None and target.dim() == 1:
        found["label", ""] = target.cpu()
    return found
