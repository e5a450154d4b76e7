"""The command line of every recipe."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from common.errors import RecipeError, message
from common.training import checkpoint
from common.training.interrupt import Interrupted
from common.training.recipe import Recipe
from common.training.run import compare, evaluate_checkpoint, open_session
from common.training.settings import add_common_arguments, resolve
from modbalance import ModbalanceError

USER_ERROR = 2
INTERRUPTED = 130
_LOG_WIDTH = 120  # characters per line where nobody says how wide the paper is


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> int:
    """Run a recipe from the command line.

    Args:
        recipe: What to train.
        argv: Arguments without the program's name; default: those of the process.

    Returns:
        Exit code: 0, 2 after a user's error, 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in recipe.commands:
            return recipe.commands[arguments[0]](arguments[1:])
        return _train_or_evaluate(recipe, arguments)
    except RecipeError as error:
        return _fail(message(error))
    except ModbalanceError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser(recipe: Recipe) -> argparse.ArgumentParser:
    """Return the parser for training and evaluation."""
    commands = f"Other commands: {', '.join(recipe.commands)} (each with --help)." if recipe.commands else None
    parser = argparse.ArgumentParser(description=recipe.title, epilog=commands, allow_abbrev=False)
    add_common_arguments(parser, recipe)
    recipe.add_arguments(parser)
    return parser


def _train_or_evaluate(recipe: Recipe, arguments: list[str]) -> int:
    given = build_parser(recipe).parse_args(arguments)
    console = _console()
    if given.eval is not None:
        _evaluate(recipe, given, console)
        return 0
    try:
        compare(open_session(recipe, resolve(given, recipe), console))
    except Interrupted:
        kept = [argument for argument in arguments if argument not in ("--resume", "--overwrite")]
        command = shlex.join(["python", sys.argv[0], *kept, "--resume"])
        console.print(f"Interrupted; the state is saved. To go on:\n  {command}", markup=False, soft_wrap=True)
        return INTERRUPTED
    return 0


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    return console


def _evaluate(recipe: Recipe, given: argparse.Namespace, console: Console) -> None:
    path = Path(given.eval)
    state = checkpoint.load(path)
    if state["recipe"] != recipe.name:
        raise RecipeError(
            f"Expected a checkpoint of the recipe {recipe.name} at {path}. Found one of {state['recipe']}."
        )
    args = resolve(given, recipe, saved=state["settings"])
    evaluate_checkpoint(open_session(recipe, args, console), path, state)


def _fail(text: str) -> int:
    Console(stderr=True).print(f"error: {text}", markup=False, highlight=False, soft_wrap=True)
    return USER_ERROR
