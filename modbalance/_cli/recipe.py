"""`modbalance recipe NAME`: runs the script of a recipe, of the wheel or of a checkout of the repository."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from modbalance._cli.command import Command, Output
from modbalance.errors import ConfigError, suggest

INSTALLED = Path(__file__).parents[1] / "_recipes"
CHECKOUT = Path(__file__).parents[2] / "recipes"
NEEDED = ("h5py", "sklearn", "filelock")  # of the extra, and not brought by torch


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help=f"{', '.join(_names())}; its own options follow, such as --help")
    arguments = parser.add_argument("arguments", nargs=argparse.REMAINDER, help="handed to the recipe")
    arguments.required = False  # argparse names it as missing where the name is


def _run(parsed: argparse.Namespace, output: Output) -> int:
    run(parsed.name, parsed.arguments)


def run(name: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by that of a recipe, so that signals and the exit status are its own.

    Raises:
        ConfigError: There is no such recipe, or its packages are not installed.
    """
    names = _names()
    if name not in names:
        raise ConfigError(f"`recipe` should be given the name of a recipe. Found {name!r}. {suggest(name, names)}")
    missing = [each for each in NEEDED if find_spec(each) is None]
    if missing:
        raise ConfigError(
            f"Recipes need further packages. Found no {', '.join(missing)}: run `pip install 'modbalance[recipes]'`."
        )
    os.execv(sys.executable, [sys.executable, str(_folder() / f"{name}.py"), *arguments])


def _folder() -> Path:
    return INSTALLED if INSTALLED.is_dir() else CHECKOUT


def _names() -> list[str]:
    return sorted(each.stem for each in _folder().glob("*.py"))


COMMAND = Command("recipe", "run the recipe of a dataset, such as cremad", _add_arguments, _run, has_json=False)
