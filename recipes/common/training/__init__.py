"""Training, evaluation and the command line that all recipes share."""

from collections.abc import Sequence

from common.training.recipe import Data, Recipe

__all__ = ["Data", "Recipe", "main"]


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> int:
    """Run a recipe from the command line; see `common.training.cli.main`."""
    # The command line stands above everything, while anything may import a part of this package.
    from common.training.cli import main as run

    return run(recipe, argv)
