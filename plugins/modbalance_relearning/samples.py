"""One feature per modality and one class for each sample of a loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from modbalance import Batch, ObservationError, Run
from modbalance.loaders import gather_samples
from modbalance.pooling import pooled


def samples_of(run: Run, loader: Iterable[Any], batches: Iterable[Batch]) -> tuple[dict[str, Tensor], Tensor, int]:
    """Return features (N, D_i) by modality, classes (N,) and the number of classes, for the samples of all ranks.

    Args:
        run: The run.
        loader: Loader of the batches, whose sampler may deal samples out to ranks.
        batches: The batches of this rank, in eval mode; a rank may have none.
    """
    features: dict[str, list[Tensor]] = {modality: [torch.empty(0)] for modality in run.modalities}
    labels, classes = [torch.empty(0, dtype=torch.long)], 2
    for batch in batches:
        labels.append(_label(batch.target))
        classes = max(classes, batch.logits.shape[1] if batch.logits.dim() > 1 else 2)
        for modality, feature in batch.require_features().items():
            features[modality].append(pooled(feature).cpu())
            if len(feature) != len(labels[-1]):
                raise ObservationError(
                    f"Method `relearning` needs one feature per sample. Found {len(feature)} of {modality!r} for "
                    f"{len(labels[-1])} targets: name the module in `fusion=` that gets one feature per sample."
                )
    columns = [torch.cat(labels), *(torch.cat(rows) for rows in features.values())]
    label, *gathered = gather_samples(run, loader, columns)
    classes = int(run.gather_rows(torch.tensor([classes])).max())
    return dict(zip(features, gathered, strict=True)), label, classes


def _label(target: Any) -> Tensor:
    """Return the class of each sample, (B,), on the CPU."""
    if isinstance(target, Tensor) and target.dim() and target.numel() == len(target):
        label = target.detach().cpu().reshape(-1)
        if bool((label == label.long()).all()):
            return label.long()
    found = f"shape {tuple(target.shape)}, {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
    raise ObservationError(
        f"Method `relearning` needs one class index per sample as the target, shape (B,). Found {found}: return such "
        "a target from `opt.end_epoch(forward=...)`."
    )
