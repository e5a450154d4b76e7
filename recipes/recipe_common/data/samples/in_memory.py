"""Dataset of samples in memory, such as the features of a packed file."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from recipe_common.data.samples.sampler import Key
from recipe_common.errors import RecipeError


class TensorSet(Dataset[tuple[Any, ...]]):
    """Samples in memory, read by (epoch, index).

    Args:
        inputs: For each modality its values by sample: a tensor (N, ...), a memory-mapped array or a sequence.
        targets: Targets by sample, N of them.
        own_targets: Targets of what each modality alone expresses, (N, ...) by modality. Evaluations compare the
            predictions from each modality alone with them too.

    Raises:
        RecipeError: If there are not as many values of every modality as targets.
    """

    def __init__(
        self,
        inputs: Sequence[Sequence[Any] | Tensor],
        targets: Sequence[Any] | Tensor,
        own_targets: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.own_targets = own_targets or {}
        sizes = [len(values) for values in (*inputs, targets)]
        if len(set(sizes)) > 1:
            raise RecipeError(
                "Every modality should have as many samples as there are targets",
                found=f"{sizes}, targets last",
                fix="take a file in which every sample is complete",
            )
        self.inputs, self.targets = tuple(inputs), targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: Key) -> tuple[Any, ...]:
        """Return one value per modality and the target of the sample `key[1]`, the same in every epoch."""
        _, index = key
        return (*(values[index] for values in self.inputs), self.targets[index])
