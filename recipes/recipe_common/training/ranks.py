"""Distributed training: the processes that torchrun starts, and their collectives."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn

from recipe_common.errors import RecipeError
from recipe_common.training.interrupt import Interrupted

T = TypeVar("T")

# The others wait for the first rank while it evaluates. torchrun ends all of them when one dies.
_TIMEOUT = timedelta(hours=24)


class FirstRankFailed(Exception):
    """The first rank raised an error, which it prints; the others end without a message of their own."""


@attrs.frozen
class _NoValue:
    """Broadcast by the first rank in place of a value if the function of `Ranks.on_first` raised.

    Attributes:
        is_interrupted: Whether it raised `Interrupted`.
    """

    is_interrupted: bool


@attrs.frozen
class Ranks:
    """This process among those that train one model together; no method communicates if there is no other process.

    Attributes:
        rank: Number of this process, 0 to ``size - 1``.
        size: Number of processes.
        local_rank: Number of this process on its machine, and index of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """Return the ranks in the environment variables of torchrun; without these, a process alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not all(name in os.environ for name in names):
            return ALONE
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def launcher(self) -> list[str]:
        """Words of the command line in front of the script."""
        return ["python"] if self.is_alone else ["torchrun", "--nproc-per-node", str(self.size)]

    def check(self, batch_size: int, jobs: int | None) -> None:
        """Check flags that depend on the number of processes.

        Raises:
            RecipeError: If the batch size is not divisible by it, or if processes would start processes.
        """
        if self.is_alone:
            return
        if jobs is not None:
            raise RecipeError(
                f"`torchrun` should train one run at a time on its {self.size} processes",
                found=f"`--jobs {jobs}`",
                fix="leave one of them out",
            )
        if batch_size % self.size:
            raise RecipeError(
                f"`--batch-size` should be divisible by the number of processes, {self.size}",
                found=f"{batch_size}",
                fix=f"give a multiple of {self.size}",
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        if self.is_alone:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on some rank."""
        return bool(self.sum(torch.tensor(int(flag))) > 0) if not self.is_alone else flag

    def broadcast(self, value: T) -> T:
        """Return the value of the first rank."""
        values: list[Any] = [value]
        if not self.is_alone:
            dist.broadcast_object_list(values, src=0)
        found: T = values[0]
        return found

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks."""
        values: list[Any] = [value] * self.size
        if not self.is_alone:
            dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of the first rank, such as the running statistics of batch norms, to all others."""
        if self.is_alone:
            return
        for buffer in model.buffers():
            value = buffer.detach().contiguous()
            dist.broadcast(value, src=0)
            buffer.copy_(value)

    def on_first(self, function: Callable[[], T]) -> T:
        """Call a function on the first rank alone and return its result on all; the others wait.

        Raises:
            Interrupted: On all ranks, if the function raised it.
            FirstRankFailed: On the others, if the function raised another error.
        """
        if self.is_alone:
            return function()
        if self.is_first:
            try:
                value = function()
            except Exception as error:
                self.broadcast(_NoValue(isinstance(error, Interrupted)))
                raise
            return self.broadcast(value)
        found: Any = self.broadcast(None)
        if isinstance(found, _NoValue):
            raise Interrupted if found.is_interrupted else FirstRankFailed
        return found

    def in_turn(self, function: Callable[[], T]) -> T:
        """Call a function on all ranks, on the first one before the others, so that these find the files it wrote."""
        if self.is_alone:
            return function()
        of_first: list[T] = []
        self.on_first(lambda: of_first.append(function()))
        return of_first[0] if self.is_first else function()


ALONE = Ranks()


@contextmanager
def connected(ranks: Ranks, device: Callable[[], torch.device]) -> Iterator[None]:
    """Open the process group of torch.distributed while the context is open.

    After an error it stays open until the process ends, since destroying it properly waits for the other ranks.

    Args:
        ranks: This process among the others.
        device: Returns the device of this rank.
    """
    if ranks.is_alone:
        yield
        return
    # Objects and flags go through gloo, so that waiting for them does not occupy the GPU.
    backend = "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"
    # Functions of this module have the group at the time of its import as a default argument: there must be none yet.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=_TIMEOUT)
    yield
    ranks.gather(None)  # all ranks end together: torchrun ends the others when one exits with an error
    dist.destroy_process_group()
    # Wrapped models hold the group, and one of its threads that frees a tensor while Python ends aborts the process.
    gc.collect()
