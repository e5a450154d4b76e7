"""Segmentation: loss and Dice coefficients against plain loops, volumes that batches cut anywhere, and the task."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from modbalance.scores import resolve
from recipe_common.tasks.segmentation import CrossEntropyDiceLoss, VolumeDice, mean_dice, segmentation
from support.operation_counts import READS, CountOps
from support.reference import cggm

REGIONS = {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,)}
WEIGHTS = (0.2, 0.3, 0.25, 0.25)


def slices(count: int, seed: int = 0, size: int = 5) -> tuple[Tensor, Tensor]:
    """Logits (count, 4, size, size) and classes (count, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 4, size, size, generator=generator)
    return logits, torch.randint(4, (count, size, size), generator=generator)


def expected_loss(logits: Tensor, target: Tensor) -> float:
    """Pixel by pixel: the weighted cross-entropy, and one Dice coefficient of the whole batch."""
    entropy = weight = both = predicted = true = 0.0
    for b, h, w in product(range(len(target)), *map(range, target.shape[1:])):
        powers = np.exp(logits[b, :, h, w].double().numpy())
        probability = powers / powers.sum()
        label = int(target[b, h, w])
        entropy -= WEIGHTS[label] * np.log(probability[label])
        weight += WEIGHTS[label]
        for c in (1, 2, 3):
            both += probability[c] * (label == c)
            predicted += probability[c]
            true += label == c
    return (entropy / weight + 1 - 2 * both / (predicted + true + 0.01)) / 2


def test_the_loss_is_cross_entropy_and_dice() -> None:
    logits, target = slices(3)
    loss = CrossEntropyDiceLoss(WEIGHTS)(logits, target)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected_loss(logits, target), rel=1e-5)


def test_the_loss_is_low_for_a_perfect_prediction_and_finite_without_tumour() -> None:
    loss = CrossEntropyDiceLoss(WEIGHTS)
    _, target = slices(2)
    perfect = 40.0 * torch.nn.functional.one_hot(target, 4).movedim(-1, 1)
    assert loss(perfect, target).item() == pytest.approx(0, abs=1e-3)
    logits = torch.randn(2, 4, 5, 5, requires_grad=True)
    value = loss(logits.half(), torch.zeros(2, 5, 5, dtype=torch.long))
    assert value.dtype == torch.float32
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def expected_dice(predicted: Tensor, target: Tensor, classes: tuple[int, ...], smooth: float) -> float:
    p = {tuple(index) for index in product(*map(range, target.shape)) if int(predicted[index]) in classes}
    t = {tuple(index) for index in product(*map(range, target.shape)) if int(target[index]) in classes}
    return 2 * (len(p & t) + smooth) / (len(p) + len(t) + 2 * smooth)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 12])
def test_dice_is_that_of_volumes_wherever_batches_end(batch_size: int) -> None:
    logits, target = slices(12)
    meter = VolumeDice(REGIONS, depth=4, smooth=1e-3)
    for start in range(0, 12, batch_size):
        meter.update(logits[start : start + batch_size], target[start : start + batch_size])
    predicted = logits.argmax(1)
    expected = {
        name: np.mean([expected_dice(predicted[s : s + 4], target[s : s + 4], classes, 1e-3) for s in (0, 4, 8)])
        for name, classes in REGIONS.items()
    }
    found = meter.compute()
    assert list(found) == ["dice", "wt", "tc", "et"]
    assert found == pytest.approx({"dice": np.mean(list(expected.values())), **expected})
    assert meter.coefficients().shape == (3, 3)


def test_dice_of_volumes_is_not_the_mean_over_slices() -> None:
    logits, target = slices(12)
    by_volume, by_slice = VolumeDice(REGIONS, depth=12), VolumeDice(REGIONS, depth=1)
    for meter in (by_volume, by_slice):
        meter.update(logits, target)
    predicted = logits.argmax(1)
    each = [expected_dice(predicted[i : i + 1], target[i : i + 1], (3,), 1e-3) for i in range(12)]
    assert by_slice.compute()["et"] == pytest.approx(np.mean(each))
    assert by_volume.compute()["et"] == pytest.approx(expected_dice(predicted, target, (3,), 1e-3))
    assert by_volume.compute()["et"] != pytest.approx(np.mean(each), abs=1e-4)


def test_a_region_that_is_nowhere_counts_as_found_unless_it_is_predicted() -> None:
    nothing = torch.zeros(2, 5, 5, dtype=torch.long)
    background = torch.zeros(2, 4, 5, 5)
    background[:, 0] = 1
    meter = VolumeDice(REGIONS, depth=2)
    meter.update(background, nothing)
    assert meter.compute() == {"dice": 1.0, "wt": 1.0, "tc": 1.0, "et": 1.0}
    necrotic = torch.zeros(2, 4, 5, 5)
    necrotic[:, 1] = 1
    meter = VolumeDice(REGIONS, depth=2)
    meter.update(necrotic, nothing)
    found = meter.compute()
    assert found["et"] == 1.0
    assert found["tc"] == found["wt"] == pytest.approx(0.002 / 50.002)


def test_a_volume_that_is_cut_off_counts_as_far_as_it_was_seen() -> None:
    logits, target = slices(6)
    meter = VolumeDice(REGIONS, depth=4)
    meter.update(logits, target)
    predicted = logits.argmax(1)
    expected = [expected_dice(predicted[s : s + 4], target[s : s + 4], (1, 3), 1e-3) for s in (0, 4)]
    assert meter.compute()["tc"] == pytest.approx(np.mean(expected))


def test_the_meter_keeps_counts_and_no_maps() -> None:
    meter = VolumeDice(REGIONS, depth=3)
    meter.update(*slices(7, size=64))
    assert sum(kept.numel() for kept in meter._counts) == 7 * len(REGIONS) * 3


def test_the_task_is_headed_by_the_mean_dice() -> None:
    task = segmentation(REGIONS, {"wt": "WT", "tc": "TC", "et": "ET"}, depth=3, weights=WEIGHTS)
    logits, target = slices(6)
    meter = task.meter()
    meter.update(logits, target)
    found = meter.compute()
    assert [metric.key for metric in task.metrics] == list(found)
    assert (task.headline.title, task.headline.higher_is_better) == ("mean Dice", True)
    assert found["dice"] == pytest.approx((found["wt"] + found["tc"] + found["et"]) / 3)
    loss = task.loss()
    assert loss(logits, target).item() == pytest.approx(expected_loss(logits, target), rel=1e-5)
    score, mask = resolve(task.score, loss)(logits, target)
    assert mask is not None
    assert score.shape == mask.shape == target.shape
    assert score[1, 2, 3].item() == pytest.approx(logits.softmax(1)[1, int(target[1, 2, 3]), 2, 3].item())


@pytest.mark.parametrize("regions", [[(1,), (2,), (3,)], [(3,), (1, 3), (1, 2, 3)]])
def test_the_dice_of_methods_equals_the_twin_of_cggm(regions: list[tuple[int, ...]]) -> None:
    logits, target = torch.randn(3, 4, 5, 6), torch.randint(4, (3, 5, 6))
    total, count = mean_dice(logits, target, regions)
    assert (total / count).item() == pytest.approx(cggm.dice(logits, target, regions), abs=1e-12)
    ignored = target.clone()
    ignored[:, :2] = -100
    total, count = mean_dice(logits, ignored, regions)
    assert (total / count).item() == pytest.approx(cggm.dice(logits[:, :, 2:], target[:, 2:], regions), abs=1e-12)


def test_the_dice_of_methods_is_in_double_precision_and_reads_nothing_on_the_host() -> None:
    logits, target = slices(3)
    with CountOps() as counted:
        total, count = mean_dice(logits, target, list(REGIONS.values()))
    assert total.dtype == count.dtype == torch.float64
    assert not READS & counted.ops.keys()
