"""Batch sampler that resumes after any batch, with an order that depends on seed and epoch alone."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from recipe_common.data.samples.seeding import permutation
from recipe_common.errors import RecipeError

Key = tuple[int, int]
"""(epoch, index): besides the seed, a sample depends on nothing else."""


class ResumableBatchSampler(Sampler[list[Key]]):
    """Yields batches of (epoch, index) keys from `offset` on, in an order that is a function of (seed, epoch).

    DataLoader workers fetch ahead of training, so iterating does not move `offset`: the trainer calls `advance()`
    after each batch that it really used, and a state saved then continues with the next batch.

    With several ranks, the batches of one step joined over the ranks are the batch of a single process with
    `batch_size * world_size` samples. A shuffled order is filled up from its start so that all ranks take equally many
    steps; an unshuffled one is not, so that evaluation counts every sample once.

    Args:
        size: Number of samples.
        batch_size: Samples per batch and rank.
        seed: Seed of the order, together with the epoch.
        shuffle: Whether the order is random; otherwise it is 0, 1, 2, ...
        drop_last: Whether to leave out the last batch if it is not full.
        rank: Index of this process, 0 to world_size - 1.
        world_size: Number of processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if size < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise RecipeError(
                "`size` should be >= 0, `batch_size` >= 1 and `rank` from 0 to `world_size` - 1",
                found=f"{size=}, {batch_size=}, {rank=}, {world_size=}",
                fix="pass values within these bounds",
            )
        self.size, self.batch_size = size, batch_size
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.offset = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of an epoch (0-based)."""
        self.epoch, self.offset = epoch, 0

    def advance(self) -> None:
        """Mark one more batch of this epoch as used."""
        self.offset += 1

    def __len__(self) -> int:
        """Number of batches of a whole epoch, those before `offset` included."""
        return len(self._batches())

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self._batches()[self.offset :])

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and the settings on which the order depends."""
        return {**self._plan(), "epoch": self.epoch, "offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            RecipeError: If the state belongs to another order of batches.
        """
        saved = {name: state.get(name) for name in self._plan()}
        if saved != self._plan():
            raise RecipeError(
                f"The checkpoint should be of the same data order, {self._plan()}",
                found=str(saved),
                fix="resume with the data, seed, batch size and number of processes of the first run",
            )
        self.epoch, self.offset = state["epoch"], state["offset"]

    def _plan(self) -> dict[str, Any]:
        names = ("size", "batch_size", "seed", "shuffle", "drop_last", "world_size")
        return {name: getattr(self, name) for name in names}

    def _batches(self) -> list[list[Key]]:
        keys = [(self.epoch, index) for index in self._order()]
        step = self.batch_size * self.world_size
        joined = [keys[start : start + step] for start in range(0, len(keys), step)]
        if self.drop_last and joined and len(joined[-1]) < step:
            joined.pop()
        mine = [batch[self.rank :: self.world_size] for batch in joined]
        return [batch for batch in mine if batch]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        order = permutation(self.size, self.seed, self.epoch)
        missing = -len(order) % self.world_size
        return (order * self.world_size)[: len(order) + missing]
