"""Gradients as lists of tensors: scaling, noise, norms, and a sandbox in which edits leave no trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance import sharding

__all__ = [
    "add_noise_",
    "all_values",
    "are_none",
    "clip_",
    "norm",
    "optimized",
    "products",
    "sandbox",
    "scale_",
    "std",
    "sum_norms",
    "values",
]

_CHUNK = 1 << 18  # elements of noise, a megabyte in single precision


def optimized(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield every parameter of the optimizer."""
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def are_none(optimizer: Optimizer) -> bool:
    """Return whether no parameter of the optimizer has a gradient."""
    for parameter in optimized(optimizer):  # noqa: SIM110 - `all` would resume a generator for each
        if parameter.grad is not None:
            return False
    return True


def values(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter for editing in place: itself if dense, its distinct values if sparse."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad._values()


def all_values(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return `values` of each parameter, with a call of it for sparse gradients alone."""
    return [g if (g := p.grad) is not None and not g.is_sparse else values(p) for p in parameters]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def scale_(parameters: Iterable[Tensor], coefficient: Tensor) -> None:
    """Multiply the gradients in place by a 0-dim tensor, in one call per device and type."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    coefficient = sharding.whole(coefficient)
    gradients = sharding.local_values(all_values(listed := [*parameters]))
    for parameter, gradient in zip(listed, gradients, strict=True):
        by_kind.setdefault((parameter.device, parameter.dtype), []).append(gradient)
    for (device, dtype), tensors in by_kind.items():
        # CUDA multiplies a list at once by a tensor of its own type only; half precision would round the coefficient.
        torch._foreach_mul_(tensors, coefficient.to(device, _wide(dtype)))


def norm(parameters: Iterable[Tensor]) -> Tensor:
    """Joint L2 norm of the gradients, 0-dim, on the device of the first."""
    norms = torch._foreach_norm(all_values(parameters))
    wide = torch.float64 if torch.float64 in [each.dtype for each in norms] else torch.float32
    return torch.linalg.vector_norm(torch.stack([each.to(norms[0].device, wide) for each in norms]))


def clip_(parameters: Sequence[Tensor], largest: float) -> None:
    """Scale the gradients down in place so that their joint L2 norm is at most ``largest``, as torch does."""
    gradients = [g for p in parameters if (g := p.grad) is not None]
    kinds = {(type(g), g.layout, g.dtype, g.device) for g in gradients}
    if len(kinds) != 1 or next(iter(kinds))[:2] != (Tensor, torch.strided):
        nn.utils.clip_grad_norm_(parameters, largest)
        return
    # The operations of torch, which would ask each gradient in turn whether it may be handled in a list.
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (total + 1e-6)).clamp(max=1.0))


def std(gradients: Sequence[Tensor]) -> Tensor:
    """Unbiased standard deviation over the elements of each tensor, (N,), in single precision at least.

    It is 0 for a single element. Of a sharded tensor it is that of the full one, on all ranks.

    Args:
        gradients: Tensors of any shape on one device, at least one.
    """
    sharded = {
        place: each for group in sharding.by_layout(gradients) for place, each in _stds_of_shards(gradients, group)
    }
    wide = [g if g.dtype == torch.float64 else g.float() for g in gradients]
    return torch.stack(
        [
            sharded[place] if place in sharded else g.std() if g.numel() > 1 else g.new_zeros(())
            for place, g in enumerate(wide)
        ]
    )


def _stds_of_shards(gradients: Sequence[Tensor], places: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield the place and the standard deviation over the full tensor of gradients of one layout; one gathering."""
    parts = [sharding.local(gradients[place]).double().flatten() for place in places]
    counts = parts[0].new_tensor([len(part) for part in parts])
    means = torch.stack([part.sum() for part in parts]) / counts.clamp(min=1)
    squares = torch.stack([(part - mean).square().sum() for part, mean in zip(parts, means.unbind(), strict=True)])
    # From moments of the parts: squares about the mean of each, and how far that lies from the mean of all.
    of_parts = sharding.rows_of_shards(torch.stack([counts, means, squares]), gradients[places[0]])
    counts, means, squares = of_parts.unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total.clamp(min=1)
    squares = (squares + counts * (means - mean).square()).sum(0)
    for place, std in zip(places, (squares / (total - 1).clamp(min=1)).sqrt().unbind(), strict=True):
        yield place, std.to(_wide(gradients[place].dtype))


def products(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Inner product of each tensor with its counterpart, (N,), in single precision at least.

    Of sharded tensors it is that of the full ones, on all ranks, by one gathering for each layout.

    Args:
        one: Tensors of any shape on one device, at least one.
        other: Tensors of the same shapes and layouts.
    """
    wide = torch.float64 if torch.float64 in [each.dtype for each in one] else torch.float32
    pairs = zip(sharding.local_values(one), sharding.local_values(other), strict=True)
    found = [torch.dot(a.reshape(-1).to(wide), b.reshape(-1).to(wide)) for a, b in pairs]
    for group in sharding.by_layout(one):
        of_parts = sharding.rows_of_shards(torch.stack([found[place] for place in group]), one[group[0]])
        for place, total in zip(group, of_parts.sum(0).unbind(), strict=True):
            found[place] = total
    return torch.stack(found)


def sum_norms(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """L2 norm of the sum of each tensor with its counterpart, (N,), in single precision at least.

    On a CPU sums are formed a megabyte at a time: all at once, their memory would take longer than the arithmetic.

    Args:
        one: Tensors of any shape on one device, at least one, none of them sharded.
        other: Tensors of the same shapes and types.
    """
    left, right = [*one], [*other]
    chunks = _chunks(left, [each.numel() for each in left]) if left[0].device.type == "cpu" else [slice(None)]
    norms = [norm for chosen in chunks for norm in torch._foreach_norm(torch._foreach_add(left[chosen], right[chosen]))]
    wide = torch.float64 if torch.float64 in [each.dtype for each in norms] else torch.float32
    return torch.stack([norm.to(one[0].device, wide) for norm in norms])


def add_noise_(gradients: list[Tensor], sigma: list[Tensor], generator: torch.Generator) -> None:
    """Add Gaussian noise in place, drawn for one tensor after the other, in single precision at least.

    Args:
        gradients: Tensors of any shape on the device of the generator, none of them sharded.
        sigma: Standard deviation of the noise of each, 0-dim.
        generator: Source of the noise.
    """
    sizes = [g.numel() for g in gradients]
    buffers: dict[torch.dtype, Tensor] = {}
    for chosen in _chunks(gradients, sizes):
        tensors, dtype = gradients[chosen], _wide(gradients[chosen.start].dtype)
        needed = sum(sizes[chosen])
        if dtype not in buffers or len(buffers[dtype]) < needed:
            buffers[dtype] = torch.empty(needed, dtype=dtype, device=tensors[0].device)
        buffer = buffers[dtype]
        # In memory that is kept from one chunk to the next; a draw depends on the layout of the tensor it is for.
        pieces = torch.split(buffer[:needed], sizes[chosen])
        noise = [
            piece.view_as(g) if g.is_contiguous() else torch.empty_like(g, dtype=dtype)
            for piece, g in zip(pieces, tensors, strict=True)
        ]
        for each in noise:
            each.normal_(generator=generator)
        torch._foreach_mul_(noise, sigma[chosen])
        torch._foreach_add_(tensors, [n.to(g.dtype) for n, g in zip(noise, tensors, strict=True)])


def _chunks(tensors: Sequence[Tensor], sizes: Sequence[int]) -> Iterator[slice]:
    """Yield slices of consecutive tensors of one type, of up to `_CHUNK` elements together or a single larger one."""
    start, total = 0, 0
    for index, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
        if index > start and (total + size > _CHUNK or tensor.dtype != tensors[start].dtype):
            yield slice(start, index)
            start, total = index, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


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
