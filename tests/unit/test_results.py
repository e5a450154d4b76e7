"""Results of an epoch: the accuracy of classes, results by modality given or measured, and coefficients."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbalance import ConfigError, EpochData, ObservationError
from modbalance.context import default_forward
from modbalance.results import accuracy, epoch_results, scalar
from support.operation_counts import READS, CountOps
from support.training import balanced, batches, multimodal

LOGITS = torch.tensor([[2.0, 1], [0, 1], [3, 1], [1, 0]])
TARGET = torch.tensor([0, 1, 1, -100])


def measured(logits: Tensor, target: Tensor, **options: Any) -> list[float]:
    return [x.item() for x in accuracy(logits, target, fix="pass numbers", **options)]


def test_accuracy_leaves_out_ignored_elements_and_absent_samples() -> None:
    assert measured(LOGITS, TARGET) == [2, 3]
    assert measured(LOGITS, TARGET, ignore_index=0) == [1, 3]
    assert measured(LOGITS, TARGET, present=torch.tensor([False, True, True, True])) == [1, 2]


def test_accuracy_of_soft_targets_is_that_of_the_most_probable_class() -> None:
    assert measured(LOGITS, F.one_hot(TARGET.clamp(min=0)).float() * 0.6 + 0.2) == [3, 4]


@pytest.mark.parametrize("there", [None, torch.tensor([True, False, True])])
def test_accuracy_of_maps_counts_elements(there: Tensor | None) -> None:
    logits, target = torch.randn(3, 4, 5, 6), torch.randint(4, (3, 5, 6))
    rows = slice(None) if there is None else there
    expected = (logits.argmax(1) == target)[rows]
    assert measured(logits, target, present=there) == [expected.sum().item(), expected.numel()]


def test_accuracy_is_in_double_precision_and_reads_nothing_on_the_host() -> None:
    there = torch.ones(4, dtype=torch.bool)
    with CountOps() as counted:
        hits, count = accuracy(LOGITS, TARGET, fix="", present=there)
    assert hits.dtype == count.dtype == torch.float64
    assert not READS & counted.ops.keys()


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2)),
        (torch.zeros(4, 3), torch.zeros(4)),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.long)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 1), torch.zeros(4, 1)),
    ],
)
def test_targets_that_are_no_classes_are_refused(logits: Tensor, target: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"should be that of classes.*Found target of torch\.\w+, shape .*: do this"):
        accuracy(logits, target, fix="do this")


def results(quantity: Literal["accuracy", "loss"], **given: Any) -> dict[str, float]:
    optimizer = balanced(multimodal(), "mslr")
    optimizer.criterion(nn.CrossEntropyLoss())
    data = EpochData(**{"train": None, "val": None, "metrics": None, "forward": default_forward} | given)
    balancer = optimizer._lifecycle
    return epoch_results(balancer.hooks.methods[0], balancer.run, data, quantity)


@pytest.mark.parametrize("quantity", ["accuracy", "loss"])
def test_given_numbers_are_the_results(quantity: Literal["accuracy", "loss"]) -> None:
    assert results(quantity, metrics={quantity: {"b": 0.5, "a": 0.25}}) == {"a": 0.25, "b": 0.5}


@pytest.mark.parametrize("quantity", ["accuracy", "loss"])
def test_results_are_means_over_samples_whatever_the_batches(quantity: Literal["accuracy", "loss"]) -> None:
    inputs, target = batches(multimodal(), 1, size=7)[0]
    whole = [(*inputs, target)]
    parts = [tuple(x[rows] for x in whole[0]) for rows in (slice(0, 5), slice(5, 7))]
    assert results(quantity, val=parts) == pytest.approx(results(quantity, val=whole), rel=1e-6)


def test_neither_numbers_nor_a_loader_is_an_error_that_names_both() -> None:
    with pytest.raises(ObservationError, match=r"metrics=\{'loss': \{'a': \.\.\., 'b': \.\.\.\}\}.*val=loader"):
        results("loss")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_coefficient_is_at_least_in_single_precision(dtype: torch.dtype) -> None:
    run = balanced(multimodal(dtype=dtype), "none")._lifecycle.run
    coefficient = scalar(run, 0.1)
    assert coefficient.shape == ()
    assert coefficient.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
