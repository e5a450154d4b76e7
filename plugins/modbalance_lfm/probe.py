"""The probe: a few samples on which the weight of the alignment is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from modbalance import ConfigError, Run


def first_half(run: Run, batch: Any) -> Any:
    """Return the first half of the samples of a batch, those of rank 0 on every rank; lists in the place of tuples.

    Raises:
        ConfigError: There are fewer than two samples, or tensors of several lengths.
    """
    sizes = {len(tensor) for tensor in tensors_of(batch) if tensor.dim()}
    if len(sizes) != 1:
        raise ConfigError(
            "The probe of method `lfm` should be a batch of tensors with one row per sample. Found "
            f"{sorted(sizes) or 'no'} rows: pass such a batch in `probe=`, or a loader to `opt.begin(train=...)`."
        )
    (size,) = sizes
    if size < 2:
        raise ConfigError(
            f"The probe of method `lfm` should hold at least 2 samples, of which the first half is used. Found {size}: "
            "pass a larger batch in `probe=`, or a loader of larger batches to `opt.begin(train=...)`."
        )
    half = size // 2
    number = int(run.gather_rows(torch.tensor([half]))[0])
    return mapped(batch, lambda tensor: run.gather_rows(tensor[:half].detach())[:number] if tensor.dim() else tensor)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_of(each)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested values with other tensors, as lists and dicts, which a checkpoint can hold."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(each, change) for each in value]
    return value


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Leave out fast kernels in the body that have no second derivative."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def first_trained(run: Run, model: nn.Module) -> nn.Parameter:
    """Return the first parameter that is trained: of the first modality's encoder, of the next ones, of the model."""
    encoders = [p for m in run.modalities for module in run.encoders(m) for p in module.parameters()]
    for parameter in (*encoders, *model.parameters()):
        if parameter.requires_grad:
            return parameter
    raise ConfigError("Method `lfm` needs a parameter that is trained. Found none: set `requires_grad` of some.")


def second_derivative(K: Tensor, L: Tensor, parameters: Sequence[Tensor], first: Tensor) -> Tensor:
    """Return h, 0-dim: the mean over the entries of one parameter of the Hessian of L times the gradient of K.

    Args:
        K: Task loss, 0-dim, with graph.
        L: Weighted loss, 0-dim, with graph.
        parameters: All parameters that are trained.
        first: The parameter whose entries are averaged.
    """
    of_task = torch.autograd.grad(K, parameters, retain_graph=True, allow_unused=True)
    of_loss = torch.autograd.grad(L, parameters, create_graph=True, allow_unused=True)
    both = zip(of_loss, of_task, strict=True)
    products = [(g * k.detach()).sum() for g, k in both if g is not None and k is not None and g.requires_grad]
    if not products:
        return torch.zeros_like(K)
    (second,) = torch.autograd.grad(sum(products[1:], products[0]), [first], allow_unused=True)
    return torch.zeros_like(K) if second is None else second.mean()
