"""Samples that are in memory, such as features of a packed file."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from common.data.sampler import Key
from common.data.seeding import derived_seed
from common.errors import RecipeError


class TensorSet(Dataset[tuple[Any, ...]]):
    """Samples in memory, read by (epoch, index).

    Args:
        inputs: For each modality its values by sample: a tensor (N, ...), a memory-mapped array or a sequence.
        targets: Targets by sample, N of them.
        transform: From the inputs of a sample and a seed (None: evaluation) to what the model gets.
        training: Whether `transform` gets a seed, a function of (seed, epoch, index).
        seed: See `training`.
    """

    def __init__(
        self,
        inputs: Sequence[Sequence[Any] | Tensor],
        targets: Sequence[Any] | Tensor,
        transform: Callable[[tuple[Any, ...], int | None], tuple[Any, ...]] | None = None,
        *,
        training: bool = False,
        seed: int = 0,
    ) -> None:
        sizes = [len(values) for values in (*inputs, targets)]
        if len(set(sizes)) > 1:
            raise RecipeError(
                f"Expected as many targets as samples of every modality. Found {sizes}, targets last. "
                "Fix: take a file in which every sample is complete."
            )
        self.inputs, self.targets = tuple(inputs), targets
        self.transform = transform
        self.training, self.seed = training, seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: Key) -> tuple[Any, ...]:
        """Return one value per modality and the target of the sample `key[1]` as it looks in epoch `key[0]`."""
        epoch, index = key
        inputs = tuple(values[index] for values in self.inputs)
        if self.transform is not None:
            inputs = self.transform(inputs, derived_seed(self.seed, epoch, index) if self.training else None)
        return (*inputs, self.targets[index])
