"""Behaviour on a CUDA device: no synchronisation in a step, mixed precision, resume of the noise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from support.models import AudioVisual
from support.training import Batch, assert_same, audio_visual, balanced, batches, train

pytestmark = pytest.mark.cuda
LOSS = nn.CrossEntropyLoss()


def on_device(data: list[Batch]) -> list[Batch]:
    return [(tuple(x.cuda() for x in inputs), target.cuda()) for inputs, target in data]


def model_on_device() -> AudioVisual:
    return audio_visual().cuda()


@pytest.fixture
def _sync_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_sync_is_an_error")
@pytest.mark.parametrize("unimodal", ["auto", "zero"])
@pytest.mark.parametrize("method", ["ogm", "ogm_ge"])
def test_a_step_does_not_synchronise(method: str, unimodal: str) -> None:
    model = model_on_device()
    optimizer = balanced(model, method, unimodal=unimodal)
    *warm_up, last = on_device(batches(model, 3, size=64))
    train(model, optimizer, warm_up)
    torch.cuda.set_sync_debug_mode("error")
    train(model, optimizer, [last])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_with_a_scaler(dtype: torch.dtype) -> None:
    model = model_on_device()
    optimizer = balanced(model, "ogm_ge")
    criterion = optimizer.criterion(LOSS)
    scaler = GradScaler("cuda", enabled=dtype is torch.float16)
    for inputs, target in on_device(batches(model, 5)):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype):
            loss = criterion(model(*inputs), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    metrics = optimizer.metrics()
    assert 0 <= metrics["ogm_ge/coefficient/audio"] <= 1
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_resume_is_bitwise() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        model, resumed = model_on_device(), model_on_device()
        data = on_device(batches(model, 4))
        optimizer = balanced(model, "ogm_ge")
        train(model, optimizer, data[:2])
        other = balanced(resumed, "ogm_ge")
        resumed.load_state_dict(model.state_dict())
        other.load_state_dict(optimizer.state_dict())
        assert_same(train(resumed, other, data[2:]), train(model, optimizer, data[2:]))
    finally:
        torch.use_deterministic_algorithms(False)
