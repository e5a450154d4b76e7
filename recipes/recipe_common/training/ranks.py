"""The processes that train one model together, as torchrun starts them."""

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

# The others wait for the first rank while it evaluates. torchrun ends all when one dies, so nobody waits for the dead.
_TIMEOUT = timedelta(hours=24)


class FirstRankFailed(Exception):
    """The first rank met an error, and tells a person; the others only end."""


@attrs.frozen
class _Ending:
    """What the first rank says in place of a value that it cannot give."""

    is_wanted: bool


@attrs.frozen
class Ranks:
    """This process among those that train one model together. All methods but `on_first` return at once if it is alone.

    Attributes:
        rank: Number of this process, 0 to ``size - 1``.
        size: Number of processes.
        local_rank: Number of this process on its machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """Return what torchrun has set; without it, a process alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not all(name in os.environ for name in names):
            return ALONE
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def is_alone(self) -> bool:
        """Whether there is one process only."""
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def launcher(self) -> list[str]:
        """What is typed before the script."""
        return ["python"] if self.is_alone else ["torchrun", "--nproc-per-node", str(self.size)]

    def check(self, batch_size: int, jobs: int | None) -> None:
        """Refuse flags that do not go with several processes.

        Raises:
            RecipeError: If the batch does not divide, or processes would start processes.
        """
        if self.is_alone:
            return
        if jobs is not None:
            raise RecipeError(
                f"Expected torchrun to train one run at a time on its {self.size} processes. "
                f"Found `--jobs {jobs}`. Fix: leave one of them out."
            )
        if batch_size % self.size:
            raise RecipeError(
                f"Expected a batch that {self.size} processes can share equally. Found `--batch-size "
                f"{batch_size}`. Fix: a multiple of {self.size}."
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
        """Give all ranks the buffers of the first one, such as the running statistics of batch norms."""
        if self.is_alone:
            return
        for buffer in model.buffers():
            value = buffer.detach().contiguous()
            dist.broadcast(value, src=0)
            buffer.copy_(value)

    def on_first(self, function: Callable[[], T]) -> T:
        """Return what a function returns on the first rank, where alone it is called; the others wait.

        Raises:
            Interrupted: If the function did.
            FirstRankFailed: On the others, if the function raised something else.
        """
        if self.is_alone:
            return function()
        if self.is_first:
            try:
                value = function()
            except Exception as error:
                self.broadcast(_Ending(isinstance(error, Interrupted)))
                raise
            return self.broadcast(value)
        found: Any = self.broadcast(None)
        if isinstance(found, _Ending):
            raise Interrupted if found.is_wanted else FirstRankFailed
        return found

    def in_turn(self, function: Callable[[], T]) -> T:
        """Return what a function returns, called on the first rank before all others, which find what it wrote."""
        if self.is_alone:
            return function()
        of_first: list[T] = []
        self.on_first(lambda: of_first.append(function()))
        return of_first[0] if self.is_first else function()


ALONE = Ranks()


@contextmanager
def connected(ranks: Ranks, device: Callable[[], torch.device]) -> Iterator[None]:
    """Let ranks talk to each other while the context is open.

    After an error they stay connected until their process ends: to part properly would be to wait for the others.

    Args:
        ranks: The ranks.
        device: Returns the device of this rank.
    """
    if ranks.is_alone:
        yield
        return
    # Objects and flags go through gloo, so that waiting for them does not occupy the GPU.
    backend = "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"
    # This module takes the group of its import as a default argument for good: it must see none.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=_TIMEOUT)
    yield
    ranks.gather(None)  # nobody leaves early: torchrun would take an exit status as a reason to end the others
    dist.destroy_process_group()
    # Wrapped models hold the group, and a thread of it that lets go of a tensor while Python ends aborts the process.
    gc.collect()
