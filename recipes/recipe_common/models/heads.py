"""How wide attention may be."""

from __future__ import annotations

from recipe_common.errors import RecipeError


def check_width(width: int, heads: int) -> None:
    """Check that attention heads can share a width; torch would end in an assertion.

    Raises:
        RecipeError: If `width` is no multiple of `heads`.
    """
    if width % heads:
        raise RecipeError(
            f"Expected a multiple of {heads} for --width. Found {width}, which {heads} attention heads cannot share. "
            f"Fix: --width {width + -width % heads}"
        )
