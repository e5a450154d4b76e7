"""The command line of every recipe."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from common.comparison.children import COMMAND, run_one
from common.comparison.compare import compare
from common.comparison.sweep import COMMAND as SWEEP
from common.comparison.sweep import add_sweep_arguments, sweep
from common.errors import RecipeError, message
from common.training import checkpoint
from common.training.flags import add_common_arguments
from common.training.interrupt import INTERRUPTED, Interrupted
from common.training.recipe import Recipe
from common.training.run import evaluate_checkpoint, open_session
from common.training.settings import resolve
from modbalance import ModbalanceError

USER_ERROR = 2
FAILED = 1
_LOG_WIDTH = 160  # characters per line where nobody says how wide the paper is


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> int:
    """Run a recipe from the command line.

    Args:
        recipe: What to train.
        argv: Arguments without the program's name; default: those of the process.

    Returns:
        Exit code: 0, 1 if runs failed, 2 after a user's error, 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in recipe.commands:
            return recipe.commands[arguments[0]](arguments[1:])
        if arguments[:1] == [COMMAND]:
            return run_one(recipe)
        if arguments[:1] == [SWEEP]:
            parser = build_parser(recipe)
            add_sweep_arguments(parser)
            return sweep(recipe, parser, arguments[1:], _console())
        return _train_or_evaluate(recipe, arguments)
    except RecipeError as error:
        return _fail(message(error))
    except ModbalanceError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser(recipe: Recipe) -> argparse.ArgumentParser:
    """Return the parser for training and evaluation."""
    commands = f"Other commands: {', '.join([*recipe.commands, SWEEP])} (each with --help)."
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
        summary = compare(recipe, resolve(given, recipe), console)
    except Interrupted:
        kept = [argument for argument in arguments if argument not in ("--resume", "--overwrite", "--update")]
        command = shlex.join(["python", sys.argv[0], *recipe.subcommand, *kept, "--resume"])
        console.print(f"Interrupted; the state is saved. To go on:\n  {command}", markup=False, soft_wrap=True)
        return INTERRUPTED
    return FAILED if any(line.failures for line in summary.lines) else 0


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
