"""The command line: `modbalance list` shows methods, `show METHOD` its options, `new NAME` writes a package."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modbalance import _recipe
from modbalance._new import write_package
from modbalance._plugins import list_methods, load_method
from modbalance.errors import ModbalanceError
from modbalance.method import Method

__all__ = ["main", "options_table"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 after a user's error."""
    parser = argparse.ArgumentParser(prog="modbalance", description="Methods of balanced multimodal learning.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the installed methods")
    show = commands.add_parser("show", help="show the options of a method, with the values of both presets")
    show.add_argument("method")
    new = commands.add_parser("new", help="write the package of a new method, whose tests pass once it is installed")
    new.add_argument("name", help="name of the method, such as my-method")
    new.add_argument("--folder", type=Path, help="where to write it; default: modbalance-NAME in the current folder")
    _recipe.add_to(commands)
    parsed = parser.parse_args(arguments)
    try:
        if parsed.command == "recipe":
            _recipe.run(parsed.name, parsed.arguments)
        if parsed.command == "new":
            Console(soft_wrap=True).print(_new(parsed.name, parsed.folder), markup=False, highlight=False)
        else:
            Console().print(_list() if parsed.command == "list" else options_table(load_method(parsed.method)))
    except ModbalanceError as error:
        Console(stderr=True, soft_wrap=True).print(f"modbalance: {error}", markup=False, highlight=False)
        return 2
    return 0


def _new(name: str, folder: Path | None) -> str:
    folder = write_package(name, folder)
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    commands = [f"cd {folder}", "pip install -e '.[dev]'", "pytest"]
    lines = [f"Wrote a working method to {folder}:", *(f"  {each}" for each in written)]
    return "\n".join([*lines, "", "Next:", *(f"  {each}" for each in commands)])


def _list() -> Table:
    table = Table("method", "what it does", "distribution")
    table.add_row("none", "Leaves the training as it is: the baseline.", "-")
    for listing in list_methods():
        summary = f"unavailable: {listing.problem}" if listing.method is None else _summary(listing.method)
        table.add_row(listing.name, escape(summary), f"{listing.distribution} {listing.version}")
    return table


def options_table(method: type[Method]) -> Table:
    """Return a table of the options of a method: official value, paper value, meaning."""
    table = Table("option", "official", "paper", "meaning", title=escape(f"{method.name}: {_summary(method)}"))
    for name, field in method.options().items():
        paper = repr(field.metadata["paper"]) if "paper" in method.presets else "-"
        table.add_row(name, repr(field.default), paper, escape(field.metadata["doc"]))
    return table


def _summary(method: type[Method]) -> str:
    own = vars(method).get("__doc__")  # not that of a base class, which `getdoc` would take
    return inspect.cleandoc(own or "").split("\n\n")[0].replace("\n", " ")
