"""Settings of a call of a recipe, as its command line gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipe_common.cli import build_parser
from recipe_common.recipe import Recipe
from recipe_common.settings.command_line import read
from recipe_common.settings.declaration import flat
from recipe_common.settings.shared import Settings
from recipe_common.training.settings import resolve


def settings_of(recipe: Recipe, *arguments: str | Path) -> Settings[Any]:
    """Return the settings of a command line."""
    return resolve(read(build_parser(recipe), [str(argument) for argument in arguments]), recipe)


def values_of(settings: Settings[Any], *names: str) -> tuple[Any, ...]:
    """Return the values of some settings, in whatever group they are."""
    values = flat(settings)
    return tuple(values[name] for name in names)
