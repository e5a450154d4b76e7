"""Training and evaluation shared by all recipes."""

from common.training.cli import main
from common.training.recipe import Data, Recipe

__all__ = ["Data", "Recipe", "main"]
