"""Runs the script of a recipe: from the wheel, or from a checkout of the repository."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from modbalance.errors import ConfigError, suggest

__all__ = ["add_to", "run"]

INSTALLED = Path(__file__).parent / "_recipes"
CHECKOUT = Path(__file__).parents[1] / "recipes"
NEEDED = ("h5py", "sklearn", "filelock")  # of the extra, and not brought by torch


def add_to(commands: Any) -> None:
    """Add the sub-command to those of the command line; all that follows the name belongs to the recipe."""
    parser: argparse.ArgumentParser = commands.add_parser("recipe", help="run the recipe of a dataset, such as cremad")
    parser.add_argument("name", help="name of the recipe; its own options follow, such as --help")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="handed to the recipe")


def run(name: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by that of a recipe, so that signals and the exit status are its own.

    Raises:
        ConfigError: There is no such recipe, or its packages are not installed.
    """
    folder = INSTALLED if INSTALLED.is_dir() else CHECKOUT
    names = sorted(each.stem for each in folder.glob("*.py"))
    if name not in names:
        raise ConfigError(f"No recipe is named {name!r}. {suggest(name, names)}")
    missing = [each for each in NEEDED if find_spec(each) is None]
    if missing:
        raise ConfigError(
            f"Recipes need further packages. Found no {', '.join(missing)}: run `pip install 'modbalance[recipes]'`."
        )
    os.execv(sys.executable, [sys.executable, str(folder / f"{name}.py"), *arguments])
