"""Segmentation task: cross-entropy and Dice loss, Dice coefficients per volume. B slices, C classes, (H, W) pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipe_common.tasks.task import Metric, Task

SMOOTH = 0.01
"""Added to the denominator of the Dice term of the loss."""

Regions = Mapping[str, Sequence[int]]


class CrossEntropyDiceLoss(nn.Module):
    """Half weighted cross-entropy, half 1 - Dice of the probabilities of all classes but 0.

    The Dice coefficient is one number per batch: intersections and sizes are summed over samples, classes and pixels,
    2 I / (P + T + 0.01). That is the loss of the code of Guo et al. (NeurIPS 2024) for BraTS.

    Args:
        weights: Weights of the C classes in the cross-entropy.
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (B, C, H, W) and class indices (B, H, W) to a scalar."""
        logits = logits.float()
        probability = logits.softmax(dim=1)
        # The probability of the right class counts where that is a foreground class; the sum of all but 0 is 1 - p_0.
        right = probability.gather(1, target.unsqueeze(1)).squeeze(1)
        is_foreground = target > 0
        intersection = (right * is_foreground).sum()
        dice = 2 * intersection / ((1 - probability[:, 0]).sum() + is_foreground.sum() + SMOOTH)
        cross_entropy = F.cross_entropy(logits, target, self.weights)
        return 0.5 * cross_entropy + 0.5 * (1 - dice)


class VolumeDice:
    """Dice coefficients of regions per volume, averaged over volumes, from slices in the order of the dataset.

    A region is a set of classes. With p predicted and t true voxels in it, n of them both, its coefficient in a volume
    is 2 (n + smooth) / (p + t + 2 smooth): 1 where a region is neither there nor predicted. Three counts per region
    are kept for each slice. A last volume that is cut off by a limit counts with the slices before the limit.

    Args:
        regions: Classes of each region, by key.
        depth: Slices per volume; 1 scores each slice on its own.
        smooth: Smoothing term of the coefficient, in voxels.
    """

    def __init__(self, regions: Regions, depth: int, smooth: float = 1e-3) -> None:
        self.regions, self.depth, self.smooth = regions, depth, smooth
        self._counts: list[Tensor] = []

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add slices: logits (B, C, H, W), classes (B, H, W)."""
        predicted = logits.argmax(dim=1)
        counts = []
        for classes in self.regions.values():
            members = torch.tensor(classes, device=target.device)
            p, t = torch.isin(predicted, members), torch.isin(target, members)
            counts.append(torch.stack([each.sum(dim=(1, 2)) for each in (p & t, p, t)], dim=1))
        self._counts.append(torch.stack(counts, dim=1))

    def coefficients(self) -> Tensor:
        """Return the coefficient of each region in each volume, (volumes, regions), fp64."""
        counts = torch.cat(self._counts).cpu()
        volume = torch.arange(len(counts)) // self.depth
        totals = counts.new_zeros(int(volume[-1]) + 1, *counts.shape[1:]).index_add_(0, volume, counts)
        both, predicted, true = totals.double().unbind(dim=2)
        return 2 * (both + self.smooth) / (predicted + true + 2 * self.smooth)

    def compute(self) -> dict[str, float]:
        """Return the mean over volumes by region, and `dice`, the mean of those."""
        means = self.coefficients().mean(dim=0)
        return {"dice": means.mean().item(), **dict(zip(self.regions, means.tolist(), strict=True))}


def mean_dice(
    logits: Tensor, target: Tensor, regions: Sequence[Sequence[int]], ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Return the sum over slices of the mean Dice coefficient of regions, and the number of slices; 0-dim, fp64.

    With p predicted and t true pixels of a region in a slice, n of them both, its coefficient is
    (2 n + 0.002) / (p + t + 0.002). There is no host read, so that methods can compute it in each step.

    Args:
        logits: Logits (B, C, H, W).
        target: Classes (B, H, W).
        regions: Classes of each region.
        ignore_index: Class of pixels that do not count.
    """
    predicted, is_valid = logits.argmax(1), target != ignore_index
    total = logits.new_zeros(len(logits), dtype=torch.float64)
    for region in regions:
        p, t = (_inside(labels, region) & is_valid for labels in (predicted, target))
        both, sizes = (each.flatten(1).sum(1, dtype=torch.float64) for each in (p & t, torch.cat([p, t], 1)))
        total = total + (2 * both + 0.002) / (sizes + 0.002) / len(regions)
    return total.sum(), total.new_full((), len(total))


def _inside(labels: Tensor, region: Sequence[int]) -> Tensor:
    """Return a mask of the labels in a region; `torch.isin` would copy the classes to the device in each call."""
    inside = labels == region[0]
    for label in region[1:]:
        inside = inside | (labels == label)
    return inside


def segmentation(regions: Regions, titles: Mapping[str, str], *, depth: int, weights: Sequence[float]) -> Task:
    """Return the task of labelling pixels: logits (B, C, H, W), class indices (B, H, W).

    The headline is the mean Dice coefficient of the regions. Methods score a modality by the softmax probability of
    the right class, averaged over pixels.

    Args:
        regions: Classes of each region, by key.
        titles: Titles of their metrics, by key.
        depth: Slices per volume, in the order of the evaluation sets.
        weights: Weights of the classes in the cross-entropy.
    """
    metrics = (Metric("dice", "mean Dice"), *(Metric(key, titles[key]) for key in regions))
    return Task(
        metrics,
        lambda: CrossEntropyDiceLoss(weights),
        lambda: VolumeDice(regions, depth),
        lacks={"classes": "a slice has pixels of all classes"},
    )
