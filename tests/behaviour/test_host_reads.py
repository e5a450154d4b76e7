"""No host reads in a step, and few operations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from support.operation_counts import READS, CountOps
from support.training import audio_visual, balanced, batches, multimodal, steps_on_fake_tensors, train


def ops_of_a_step(method: str, **arguments: Any) -> Counter[str]:
    """Return the operations of the third step of the reference model at batch 64, views left out."""
    model = audio_visual()
    optimizer = balanced(model, method, **arguments)
    *warm_up, last = batches(model, 3, size=64)
    train(model, optimizer, warm_up)
    with CountOps() as counted:
        train(model, optimizer, [last])
    return counted.ops


@pytest.mark.parametrize("unimodal", ["auto", "zero"])
@pytest.mark.parametrize("method", ["ogm", "ogm_ge"])
def test_no_host_reads_are_added(method: str, unimodal: str) -> None:
    added = ops_of_a_step(method, unimodal=unimodal) - ops_of_a_step("none")
    assert not READS & added.keys()


def test_the_count_sees_a_host_read() -> None:
    with CountOps() as counted:
        torch.ones(()).item()
    assert READS & counted.ops.keys()


@pytest.mark.parametrize("unimodal", ["slice", "zero"])
@pytest.mark.parametrize("method", ["ogm", "ogm_ge"])
def test_a_step_runs_on_fake_tensors(method: str, unimodal: str) -> None:
    assert steps_on_fake_tensors(lambda model: balanced(model, method, unimodal=unimodal)) == 2


def test_outside_the_window_nothing_is_added() -> None:
    assert ops_of_a_step("ogm_ge", start_epoch=5, end_epoch=5) == ops_of_a_step("none")


def test_metrics_read_each_device_once() -> None:
    model = multimodal()
    optimizer = balanced(model)
    train(model, optimizer, batches(model, 1))
    with CountOps() as counted:
        values = optimizer.metrics()
    assert len(values) == 6
    assert counted.ops["aten._to_copy.default"] <= len(values)
    assert counted.ops["aten.stack.default"] == 1
