"""Collectives over the ranks that train one model together: sums in one all-reduce, votes, rows, broadcasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modbalance.errors import ConfigError


class Ranks:
    """The ranks that train one model together: those of its DDP process group, else the default group."""

    def __init__(self, model: nn.Module | None) -> None:
        self._group: Any = getattr(model, "process_group", None)
        self._wrapped: Any = model if self._group is not None else None
        self.uneven: Any = None
        """The hook by which the optimizer takes part in a `Join` context, from the first such context on."""
        self._step_sums: dict[tuple[str, ...], tuple[int, torch.dtype, torch.device]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A process group belongs to its process.
        return self.__dict__ | {"_group": None, "_wrapped": None, "uneven": None}

    @property
    def group(self) -> Any:
        """The process group; the default one where the model is not wrapped by DDP."""
        return self._group if self._group is not None else dist.group.WORLD

    @property
    def count(self) -> int:
        """Number of ranks, 1 without torch.distributed."""
        return dist.get_world_size(self._group) if dist.is_available() and dist.is_initialized() else 1

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return each tensor summed over the ranks; shapes and dtypes are kept, inputs are left alone."""
        if self.count == 1 or not tensors:
            return list(tensors)
        wide = _wide(tensors)
        flat = torch.cat([tensor.detach().reshape(-1).to(tensors[0].device, wide) for tensor in tensors])
        dist.all_reduce(flat, group=self._group)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.reshape(t.shape).to(t.device, t.dtype) for part, t in zip(parts, tensors, strict=True)]

    def sum_of_step(self, tensors: Sequence[Tensor], methods: tuple[str, ...]) -> list[Tensor]:
        """Return what `sum` does of the statistics of a step, which ranks without batches take part in by zeros.

        Raises:
            ConfigError: The model is in a `Join` context that does not know the optimizer.
        """
        if self.count > 1:
            if tensors and self._is_left_out:
                raise ConfigError(
                    f"`Join` should know the optimizer too, since {_named(methods)} reduces statistics in each step. "
                    "Found the model alone: write `Join([model, opt])`."
                )
            size = sum(tensor.numel() for tensor in tensors)
            self._step_sums[methods] = size, _wide(tensors), tensors[0].device if tensors else torch.device("cpu")
        return self.sum(tensors)

    @property
    def _is_left_out(self) -> bool:
        """Whether the latest `Join` context has the model without the optimizer."""
        config = self.join_config
        is_known = self.uneven is not None and self.uneven.is_of_this_context
        return config is not None and config.enable and not is_known

    @property
    def join_config(self) -> Any:
        """The model's settings of the latest `Join` context, an object of its own for each; ``None``: no DDP."""
        return getattr(self._wrapped, "_join_config", None)

    def shadow_step(self, methods: tuple[str, ...]) -> None:
        """Take part in `sum_of_step` of the other ranks, with zeros.

        Raises:
            ConfigError: This rank has taken no step with these methods, so that the sizes are not known.
        """
        if not methods or self.count == 1:
            return
        if methods not in self._step_sums:
            raise ConfigError(
                f"Each rank should have at least one batch in a `Join` context, since {_named(methods)} reduces "
                "statistics whose sizes a batch shows. Found none: deal the samples out so that none is left empty."
            )
        size, dtype, device = self._step_sums[methods]
        if size:
            dist.all_reduce(torch.zeros(size, dtype=dtype, device=device), group=self._group)

    def refuse_uneven(self, method: str) -> None:
        """Raise a ConfigError in a `Join` context: other ranks may have run out of batches, and nobody would answer."""
        if self._is_left_out or (self.uneven is not None and self.uneven.is_active):
            raise ConfigError(
                f"Method `{method}` should not reduce values over ranks outside of `opt.step()` in a `Join` context, "
                "where ranks without batches take no part in it. Found that it does: give each rank as many batches, "
                "such as by `DistributedSampler(..., drop_last=True)` and a loader with `drop_last=True`, without "
                "`Join`; call `opt.end_epoch` after the context."
            )

    @property
    def synchronizes(self) -> bool:
        """Whether the latest backward of the model averages gradients over ranks, as known in a `Join` context."""
        return bool(getattr(self._wrapped, "require_forward_param_sync", True))

    def source_of_state(self, took_every_step: bool) -> int | None:
        """Return the largest rank that took every step, the same on all ranks; ``None`` where all did."""
        device = self._step_device()
        votes = torch.tensor([self.rank if took_every_step else -1, int(not took_every_step)], device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        source, is_uneven = votes.tolist()
        return source if is_uneven else None

    def broadcast_object(self, value: Any, source: int) -> Any:
        """Return the value of a rank, on every rank; what can be pickled."""
        holder = [value]
        index = source if self._group is None else dist.get_global_rank(self._group, source)
        dist.broadcast_object_list(holder, index, group=self._group, device=self._step_device())
        return holder[0]

    def _step_device(self) -> torch.device:
        parameter = None if self._wrapped is None else next(self._wrapped.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

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


def _wide(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _named(methods: tuple[str, ...]) -> str:
    return " and ".join(f"`{method}`" for method in methods)
