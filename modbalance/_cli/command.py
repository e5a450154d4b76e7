"""What every command consists of, and where it prints: tables for people, one JSON document for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from modbalance.errors import ModbalanceError

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


class CommandError(ModbalanceError):
    """What a user gave to a command does not fit; the message says what should be, what was found, and the fix."""


@attrs.frozen
class Output:
    """Where a command prints.

    Attributes:
        as_json: Whether stdout gets one JSON document and nothing else.
        console: For people; quiet with ``as_json``.
    """

    as_json: bool
    console: Console

    def show(self, *parts: RenderableType | str) -> None:
        """Print tables, and texts as they are: not wrapped, without markup."""
        for part in parts:
            if isinstance(part, str):
                self.console.print(part, markup=False, highlight=False, soft_wrap=True)
            else:
                self.console.print(part)

    def note(self, text: str) -> None:
        """Print a paragraph, wrapped at words."""
        self.console.print(text, markup=False, highlight=False)

    def json(self, document: Any) -> None:
        """Print the document, if that is wanted."""
        if self.as_json:
            print(json.dumps(document, indent=2, allow_nan=False, default=repr))


@attrs.frozen
class Command:
    """One command.

    Attributes:
        name: Its name.
        help: What it does, in one sentence.
        add_arguments: Declares its arguments.
        run: Runs it and returns the exit status.
        aliases: Further names.
        has_json: Whether it prints one JSON document with --json.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Output], int]
    aliases: Sequence[str] = ()
    has_json: bool = True


def table(*titles: str, title: str | None = None, numbers: Sequence[int] = ()) -> Table:
    """Return an empty table whose cells fold where the terminal is narrow; columns ``numbers`` are right-aligned."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title and escape(title), title_justify="left")
    for index, each in enumerate(titles):
        made.add_column(escape(each), overflow="fold", justify="right" if index in numbers else "left")
    return made


def add_row(to: Table, *cells: str) -> None:
    """Add a row of plain texts."""
    to.add_row(*map(escape, cells))
