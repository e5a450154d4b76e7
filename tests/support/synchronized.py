"""torch's own SyncBatchNorm on a CPU: its collectives and its autograd function, over plain kernels in place of CUDA's.

torch (2.11) has no CPU kernels for the five operations of it, and its forward refuses other devices than accelerators.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Maybe = Tensor | None


def allow_on_cpu(patch: pytest.MonkeyPatch) -> torch.library.Library:
    """Let `nn.SyncBatchNorm` train on a CPU as long as the library that is returned is kept."""
    library = torch.library.Library("aten", "IMPL")
    for function in (stats, gather_stats_with_counts, elemt, backward_reduce, backward_elemt):
        library.impl(f"batch_norm_{function.__name__}", function, "CPU")
    forward = nn.SyncBatchNorm.forward

    def on_any_device(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patched:  # the forward compares the device with this name, too
            patched.setattr(torch._C, "_get_privateuse1_backend_name", lambda: x.device.type)
            return forward(self, x)

    patch.setattr(nn.SyncBatchNorm, "forward", on_any_device)
    patch.setattr(DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda *_: None)  # refuses CPU modules
    return library


def summed(x: Tensor) -> Tensor:
    """Return sums by channel, (C,), of (B, C, ...)."""
    return x.sum([dim for dim in range(x.dim()) if dim != 1])


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return (C,) in a shape that is broadcast over (B, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / sqrt(variance + eps) of this rank's samples, (C,) each."""
    count = x.numel() / x.shape[1]
    mean = summed(x) / count
    variance = summed((x - by_channel(mean, x)) ** 2) / count
    return mean, (variance + eps).rsqrt()


def gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Maybe,
    running_var: Maybe,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / sqrt(variance + eps) over ranks, of those of each rank, (ranks, C); move running ones."""
    shares, count = counts[:, None], counts.sum()
    mean = (means * shares).sum(0) / count
    variance = ((invstds**-2 - eps + (means - mean) ** 2) * shares).sum(0) / count
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * count / (count - 1), momentum)
    return mean, (variance + eps).rsqrt()


def elemt(x: Tensor, weight: Maybe, bias: Maybe, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    """Return normalized values."""
    scale = invstd if weight is None else invstd * weight
    out = (x - by_channel(mean, x)) * by_channel(scale, x)
    return out if bias is None else out + by_channel(bias, x)


def backward_reduce(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Maybe,
    of_input: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sums over this rank's samples that the gradients are made of, (C,) each."""
    total, product = summed(gradient), summed(gradient * (x - by_channel(mean, x)))
    return total, product, product * invstd, total.clone()


def backward_elemt(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Maybe,
    total: Tensor,
    product: Tensor,
    counts: Tensor,
) -> Tensor:
    """Return the gradient of the input, of sums over all ranks."""
    count = counts.sum()
    slope = by_channel(invstd**2 * product / count, x)
    centred = gradient - by_channel(total / count, x) - (x - by_channel(mean, x)) * slope
    return centred * by_channel(invstd if weight is None else invstd * weight, x)
