"""Seeds and permutations as pure functions of whole numbers, independent of global random state and of workers."""

import numpy as np
import torch

from recipe_common.errors import RecipeError


def derived_seed(*numbers: int) -> int:
    """Return a 64-bit seed that depends on all of `numbers` (each >= 0), such as (seed, epoch, index).

    Raises:
        RecipeError: If one of them is negative.
    """
    try:
        return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    except ValueError as error:
        raise RecipeError(
            "Seeds should be at least 0",
            found=str(min(numbers)),
            fix="give a `--seed` and a `--split-seed` of at least 0",
        ) from error


def permutation(size: int, *numbers: int) -> list[int]:
    """Return a random order of `range(size)` that depends on `numbers` alone."""
    generator = torch.Generator().manual_seed(derived_seed(*numbers))
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order
