"""Precision, for every method: skipped first steps, fp16 with a scaler, bf16 and fp64 parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from modbalance.testing._case import Training, different, require_finite
from support.every_method import BUILT_IN, case_of

SKIPPED = 3


def train_scaled(training: Training, overflows: int) -> GradScaler:
    """Train with a scaler whose first steps overflow as often as told, on batches before those of the training."""
    scale = 2.0**10
    scaler = GradScaler("cpu", init_scale=scale * 2.0**overflows, growth_interval=10**6)
    data = training.data()
    for index, batch in enumerate([data[-1]] * overflows + data):
        inputs, target = batch
        training.optimizer.zero_grad()
        scaler.scale(training.criterion(training.wrapped(*inputs), target)).backward()
        if index < overflows:
            for parameter in training.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.view(-1)[0] = torch.inf
        scaler.step(training.optimizer)
        scaler.update()
        step = index - overflows
        if step >= 0 and step % 2:
            training.end_epoch(data[step - 1 : step + 1])
    assert scaler.get_scale() == scale
    return scaler


@pytest.mark.parametrize("name", BUILT_IN)
def test_skipped_first_steps_leave_no_trace(name: str) -> None:
    skipping, alone = case_of(name).training(), case_of(name).training()
    train_scaled(skipping, SKIPPED)
    train_scaled(alone, 0)

    assert different(skipping.weights(), alone.weights()) == []
    assert different(skipping.saved(), alone.saved()) == []


class Tiny(nn.Module):
    """A loss of which a gradient in half precision is 0 unless it is scaled."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), target) * self.factor


def gradients_of(name: str, dtype: torch.dtype, factor: float, scale: float, **options: Any) -> dict[str, Tensor]:
    """Return the unscaled gradients of the second batch, divided by the factor of the loss."""
    training = case_of(name, **options).training(dtype=dtype, loss_fn=Tiny(factor))
    first, (inputs, target), *_ = training.data()
    training.step(first)
    training.optimizer.zero_grad()
    (training.criterion(training.wrapped(*inputs), target) * scale).backward()
    named = training.model.named_parameters()
    return {key: p.grad.double() / (scale * factor) for key, p in named if p.grad is not None}


EXTRA: dict[str, dict[str, Any]] = {
    "agm": {},
    "agm, recomputed": {"recompute": True},
    "agm, joined": {"coalitions": "joined"},
    "dgl": {},
    "dgl, projected": {"detach_at": "projected"},
}


@pytest.mark.parametrize("label", EXTRA)
def test_the_scale_reaches_further_terms_in_half_precision(label: str) -> None:
    """With a loss so small that half precision loses it, gradients times the scale are those of single precision."""
    name, tiny, scale = label.split(",")[0], 2.0**-22, 2.0**22
    expected = gradients_of(name, torch.float32, tiny, 1.0, **EXTRA[label])
    scaled = gradients_of(name, torch.float16, tiny, scale, **EXTRA[label])
    lost = gradients_of(name, torch.float16, tiny, 1.0, **EXTRA[label])

    assert scaled.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient.abs().max() > 1e-3, key
        assert (scaled[key] - gradient).abs().max() <= 2e-2 * gradient.abs().max(), key
    encoders = [key for key in lost if key.startswith("encoders")]
    assert max(float((lost[key] - expected[key]).abs().max() / expected[key].abs().max()) for key in encoders) > 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", BUILT_IN)
def test_parameters_of_another_type(name: str, dtype: torch.dtype) -> None:
    """A model of this type trains in it, close to single precision, and its state survives a restart."""
    # Noise in double precision is another draw.
    silent = {"noise_scale": 0.0} if name == "ogm_ge" else {}
    training, single = case_of(name, **silent).training(dtype=dtype), case_of(name, **silent).training()
    data = training.data()
    training.run(data, stop=2)
    single.run(stop=2)
    require_finite(training, "")
    assert {value.dtype for value in training.weights().values()} == {dtype}
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-4
    assert (
        different(
            {key: value.double() for key, value in training.weights().items()},
            {key: value.double() for key, value in single.weights().items()},
            tolerance,
        )
        == []
    )

    training = case_of(name).training(dtype=dtype).run(data, stop=2)
    resumed = case_of(name).training(dtype=dtype, seed=7)
    resumed.model.load_state_dict(training.model.state_dict())
    resumed.optimizer.load_state_dict(training.optimizer.state_dict())
    resumed.run(data, start=2)
    whole = case_of(name).training(dtype=dtype).run(data)
    assert different(resumed.weights(), whole.weights()) == []
    assert different(resumed.saved(), whole.saved()) == []
