"""Check of the width of attention layers."""

from __future__ import annotations

from recipe_common.errors import RecipeError


def check_width(width: int, heads: int) -> None:
    """Check that a width is divisible by the number of attention heads; torch would raise an assertion.

    Raises:
        RecipeError: If `width` is no multiple of `heads`.
    """
    if width % heads:
        raise RecipeError(
            f"`--width` should be a multiple of {heads}",
            found=f"{width}, which {heads} attention heads cannot share",
            fix=f"write `--width {width + -width % heads}`",
        )
