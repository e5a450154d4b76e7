"""Where the tensors of a batch are made."""

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


def batch_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an unfilled tensor, in a DataLoader worker one in shared memory: handing it over is then no copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    size = torch.Size(shape).numel() * dtype.itemsize
    # As torch's own default_collate does it; there is no public way.
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
