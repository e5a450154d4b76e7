"""Gradients as lists of tensors: scaling, noise, norms, and a sandbox for what must leave no trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer


def optimized(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield every parameter of the optimizer."""
    for group in optimizer.param_groups:
        yield from group["params"]


def values(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter for editing in place: itself if dense, its distinct values if sparse."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad._values()


def scale_(parameters: Iterable[Tensor], coefficient: Tensor) -> None:
    """Multiply the gradients in place by a 0-dim tensor, in one call per device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for parameter in parameters:
        by_device.setdefault(parameter.device, []).append(values(parameter))
    for device, tensors in by_device.items():
        torch._foreach_mul_(tensors, coefficient.to(device))


def std(gradient: Tensor) -> Tensor:
    """Unbiased standard deviation over the elements of one tensor, 0-dim; 0 for a single element."""
    wide = gradient if gradient.dtype == torch.float64 else gradient.float()
    return wide.std() if wide.numel() > 1 else wide.new_zeros(())


def add_noise_(gradient: Tensor, sigma: Tensor, generator: torch.Generator) -> None:
    """Add Gaussian noise of standard deviation ``sigma`` (0-dim) in place."""
    noise = torch.empty_like(gradient, dtype=sigma.dtype).normal_(generator=generator)
    gradient.add_((noise * sigma).to(gradient.dtype))


@contextmanager
def sandbox(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let the body edit copies of the gradients; the gradients themselves are put back afterwards."""
    kept = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    try:
        for parameter, gradient in kept:
            parameter.grad = gradient.clone() if gradient is not None else None
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
