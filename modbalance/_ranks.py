"""Collectives over the ranks that train one model together: sums in one all-reduce, votes, rows, broadcasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks:
    """The ranks that train one model together: those of its DDP process group, else the default group."""

    def __init__(self, model: nn.Module | None) -> None:
        self._group: Any = getattr(model, "process_group", None)

    def __getstate__(self) -> dict[str, Any]:
        return {"_group": None}  # a process group belongs to its process

    @property
    def count(self) -> int:
        """Number of ranks, 1 without torch.distributed."""
        return dist.get_world_size(self._group) if dist.is_available() and dist.is_initialized() else 1

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return each tensor summed over the ranks; shapes and dtypes are kept, inputs are left alone."""
        if self.count == 1 or not tensors:
            return list(tensors)
        wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        flat = torch.cat([tensor.detach().reshape(-1).to(tensors[0].device, wide) for tensor in tensors])
        dist.all_reduce(flat, group=self._group)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.reshape(t.shape).to(t.device, t.dtype) for part, t in zip(parts, tensors, strict=True)]

    def minimum(self, vote: int, device: torch.device) -> int:
        """Return the smallest vote of all ranks (one host read)."""
        if self.count == 1:
            return vote
        votes = torch.tensor(vote, device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=self._group)
        return int(votes)

    @property
    def rank(self) -> int:
        """Rank of this process, 0 without torch.distributed."""
        return dist.get_rank(self._group) if self.count > 1 else 0

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, in rank order; ranks may hold different numbers of rows."""
        if self.count == 1:
            return rows
        parts: list[Tensor | None] = [None] * self.count
        dist.all_gather_object(parts, rows.cpu(), group=self._group)
        return torch.cat([part for part in parts if part is not None]).to(rows.device)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return the tensor of rank 0, on every rank."""
        if self.count > 1:
            source = 0 if self._group is None else dist.get_global_rank(self._group, 0)
            dist.broadcast(tensor, source, group=self._group)
        return tensor
