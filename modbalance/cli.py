"""The command line `modbalance`; a command is one module of `modbalance._cli`, named here.

Exit status: 0; 1 where a check failed or `doctor` found a problem; 2 after an error of the user, which is one message
on stderr; 130 after an interruption.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from rich.console import Console

from modbalance._cli import check, compare, doctor, methods, new, plot, recipe, show
from modbalance._cli.command import INTERRUPTED, USER_ERROR, Command, Output
from modbalance.errors import ModbalanceError

__all__ = ["main"]

COMMANDS: tuple[Command, ...] = (
    methods.COMMAND,
    show.COMMAND,
    check.COMMAND,
    new.COMMAND,
    plot.COMMAND,
    compare.COMMAND,
    doctor.COMMAND,
    recipe.COMMAND,
)
STATUSES = (
    "Exit status: 0; 1 if a check failed or doctor found a problem; 2 after an error of the user; 130 if interrupted. "
    "With --json, stdout of all commands but recipe is one JSON document."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, see the module."""
    parsed = parser().parse_args(arguments)
    output = Output(parsed.json, Console(quiet=parsed.json))
    try:
        return parsed.run(parsed, output)
    except ModbalanceError as error:
        Console(stderr=True, soft_wrap=True).print(f"modbalance: {error}", markup=False, highlight=False)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    made = argparse.ArgumentParser(
        prog="modbalance",
        description="Methods of balanced multimodal learning.",
        epilog=STATUSES,
        allow_abbrev=False,
        # Python 3.13 would make room for the aliases; with a limit the help is the same in every Python.
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=18),
    )
    subparsers = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        description = f"{command.help[0].upper()}{command.help[1:]}."
        own = subparsers.add_parser(
            command.name,
            help=command.help,
            aliases=list(command.aliases),
            description=description,
            epilog=STATUSES,
            allow_abbrev=False,
        )
        command.add_arguments(own)
        if command.has_json:
            own.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
        own.set_defaults(run=command.run, **({} if command.has_json else {"json": False}))
    return made
