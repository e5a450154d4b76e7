"""Padding of sequences: moved to their end, and trimmed to the longest sequence of a batch."""

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils.data import default_collate

from recipe_common.data.readers.packed_parts import MODALITIES
from recipe_common.data.readers.packed_sequences import Packed
from recipe_common.errors import RecipeError


def trim_padding(samples: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Collate samples and cut the steps at the end that are zero in all of them, in all modalities.

    For sequences that are aligned by word and padded at the end; the result is that of
    `torch.nn.utils.rnn.pad_sequence`.
    """
    *inputs, target = default_collate(list(samples))
    is_real = torch.stack([sequence.ne(0).any(dim=2).any(dim=0) for sequence in inputs]).any(dim=0)
    length = max(1, int(is_real.nonzero().max()) + 1 if is_real.any() else 1)
    return [*(sequence[:, :length] for sequence in inputs), target]


def left_aligned(packed: Packed) -> Packed:
    """Move the zero steps in front of the first word to the end, in all modalities.

    The arrays are aligned by word, so all modalities move by the same number of steps. Audio and vision before the
    first word are cut off, as in MultiBench and in the code of Li et al. (ICCV 2023).

    Args:
        packed: Arrays of equal T.

    Raises:
        RecipeError: If the modalities have unequal T.
    """
    lengths = {modality: getattr(packed, modality).shape[1] for modality in MODALITIES}
    if len(set(lengths.values())) > 1:
        raise RecipeError(
            "The modalities should be aligned by word",
            found=f"{lengths} steps in time",
            fix="take the file of aligned features",
        )
    is_word = (packed.text != 0).any(dim=2)
    start = is_word.int().argmax(dim=1, keepdim=True)
    source = torch.arange(is_word.shape[1]) + start
    inside = (source < is_word.shape[1])[..., None]
    source = source.clamp(max=is_word.shape[1] - 1)[..., None]

    def move(values: Tensor) -> Tensor:
        return values.gather(1, source.expand_as(values)) * inside

    return attrs.evolve(packed, text=move(packed.text), audio=move(packed.audio), vision=move(packed.vision))
