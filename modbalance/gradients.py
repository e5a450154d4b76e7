"""Gradients as lists of tensors: scaling, noise, norms, and a sandbox in which edits leave no trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["add_noise_", "norm", "optimized", "sandbox", "scale_", "std", "values"]


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
    """Multiply the gradients in place by a 0-dim tensor, in one call per device and type."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        by_kind.setdefault((parameter.device, parameter.dtype), []).append(values(parameter))
    for (device, dtype), tensors in by_kind.items():
        # CUDA multiplies a list at once by a tensor of its own type only; half precision would round the coefficient.
        wide = dtype if dtype == torch.float64 else torch.float32
        torch._foreach_mul_(tensors, coefficient.to(device, wide))


def norm(parameters: Iterable[Tensor]) -> Tensor:
    """Joint L2 norm of the gradients, 0-dim, on the device of the first."""
    norms = torch._foreach_norm([values(parameter) for parameter in parameters])
    wide = torch.float64 if any(each.dtype == torch.float64 for each in norms) else torch.float32
    return torch.linalg.vector_norm(torch.stack([each.to(norms[0].device, wide) for each in norms]))


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
    kept = [(parameter, gradient) for parameter in parameters if (gradient := parameter.grad) is not None]
    try:
        for parameter, gradient in kept:
            parameter.grad = gradient.clone()
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
