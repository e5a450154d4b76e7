"""The command line of every recipe."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from modbalance import ModbalanceError
from recipe_common.comparison.child import COMMAND, run_one
from recipe_common.comparison.compare import compare
from recipe_common.comparison.sweep import COMMAND as SWEEP
from recipe_common.comparison.sweep import SweepSettings, sweep
from recipe_common.errors import RecipeError, message
from recipe_common.recipe import Recipe
from recipe_common.report.telemetry import COMMAND as TELEMETRY
from recipe_common.report.telemetry import telemetry
from recipe_common.settings.command_line import add_flags, read
from recipe_common.settings.shared import FAIR, Settings
from recipe_common.training import checkpoint
from recipe_common.training.interrupt import INTERRUPTED, Interrupted
from recipe_common.training.precision import choose_device
from recipe_common.training.ranks import ALONE, FirstRankFailed, Ranks, connected
from recipe_common.training.run import evaluate_checkpoint, open_session
from recipe_common.training.settings import resolve

USER_ERROR = 2
FAILED = 1
_LOG_WIDTH = 160  # characters per line where the output is no terminal


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> int:
    """Run a recipe from the command line.

    Args:
        recipe: Dataset, model and defaults.
        argv: Arguments without the name of the program; default: those of the process.

    Returns:
        Exit code: 0, 1 if runs failed, 2 after an error of the user, 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    ranks = Ranks.from_environment()
    try:
        if not ranks.is_alone:
            return _train_together(recipe, arguments, ranks)
        if arguments and arguments[0] in recipe.commands:
            return recipe.commands[arguments[0]](arguments[1:])
        if arguments[:1] == [COMMAND]:
            return run_one(recipe)
        if arguments[:1] == [SWEEP]:
            parser = build_parser(recipe)
            add_flags(parser, SweepSettings)
            return sweep(recipe, parser, arguments[1:], _console())
        if arguments[:1] == [TELEMETRY]:
            return telemetry(recipe.name, arguments[1:], _console())
        return _train_or_evaluate(recipe, arguments)
    except RecipeError as error:
        return _fail(message(error), ranks)
    except ModbalanceError as error:
        return _fail(str(error), ranks)
    except FirstRankFailed:
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser(recipe: Recipe) -> argparse.ArgumentParser:
    """Return the parser for training and evaluation."""
    commands = f"Other commands: {', '.join([*recipe.commands, SWEEP, TELEMETRY])} (each with --help)."
    parser = argparse.ArgumentParser(description=recipe.title, epilog=commands, allow_abbrev=False)
    add_flags(parser, Settings, {"protocol": (FAIR, *recipe.protocols)})
    add_flags(parser, recipe.settings)
    return parser


def _train_or_evaluate(recipe: Recipe, arguments: list[str]) -> int:
    given = read(build_parser(recipe), arguments)
    console = _console()
    if "eval" in given:
        _evaluate(recipe, given, console)
        return 0
    return _train(recipe, resolve(given, recipe), arguments, console)


def _train(
    recipe: Recipe, settings: Settings[Any], arguments: list[str], console: Console, ranks: Ranks = ALONE
) -> int:
    try:
        summary = compare(recipe, settings, console, ranks)
    except Interrupted:
        kept = [argument for argument in arguments if argument not in ("--resume", "--overwrite", "--update")]
        command = shlex.join([*ranks.launcher, sys.argv[0], *recipe.subcommand, *kept, "--resume"])
        console.print(f"Interrupted; the state is saved. To continue:\n  {command}", markup=False, soft_wrap=True)
        return INTERRUPTED
    return FAILED if any(line.failures for line in summary.lines) else 0


def _train_together(recipe: Recipe, arguments: list[str], ranks: Ranks) -> int:
    """Train in several processes, of which this is one that torchrun has started."""
    is_training = not arguments or arguments[0] not in (*recipe.commands, COMMAND, SWEEP, TELEMETRY)
    given = read(build_parser(recipe), arguments) if is_training else None
    if given is None or "eval" in given:
        if not ranks.is_first:
            return FAILED
        found = "--eval" if given is not None else arguments[0]
        raise RecipeError(
            "`torchrun` should start a training", found=f"`{found}`", fix=f"run `python {sys.argv[0]} {found} ...`"
        )
    settings = resolve(given, recipe)
    # Two screens on one terminal would overwrite each other.
    console = _console() if ranks.is_first else Console(quiet=True, force_terminal=False)
    with connected(ranks, lambda: choose_device(settings.machine.device, ranks)):
        ranks.on_first(lambda: ranks.check(settings.optimisation.batch_size, settings.comparison.jobs))
        return _train(recipe, settings, arguments, console, ranks)


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    return console


def _evaluate(recipe: Recipe, given: Mapping[str, Any], console: Console) -> None:
    path: Path = given["eval"]
    state = checkpoint.load(path)
    if state["recipe"] != recipe.name:
        raise RecipeError(
            f"{path} should be a checkpoint of the recipe {recipe.name}",
            found=f"one of {state['recipe']}",
            fix="evaluate it with the script of its recipe",
        )
    settings = resolve(given, recipe, saved=state["settings"])
    evaluate_checkpoint(open_session(recipe, settings, console), path, state)


def _fail(text: str, ranks: Ranks) -> int:
    name = "error" if ranks.is_first else f"rank {ranks.rank}: error"
    Console(stderr=True).print(f"{name}: {text}", markup=False, highlight=False, soft_wrap=True)
    return USER_ERROR
