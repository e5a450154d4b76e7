"""Command-line flags from classes of settings: adds them to a parser, and reads their typed values."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs

from recipe_common.settings.declaration import Flag, build, parts

T = TypeVar("T")
Choices = Mapping[str, Sequence[str]]


def add_flags(parser: argparse.ArgumentParser, kind: type[Any], choices: Choices | None = None) -> None:
    """Add the flags of a class of settings; a class with a ``title`` gets a group of its own in ``--help``.

    Args:
        parser: Parser to which they are added. The value of a flag that is not given is None.
        kind: The class.
        choices: All possible values, by flag, where the declarations of the class do not have them.
    """
    _add(parser, parser, kind, choices or {})


def _add(parser: argparse.ArgumentParser, above: Any, kind: type[Any], choices: Choices) -> None:
    title = getattr(kind, "title", None)
    target = above if title is None else parser.add_argument_group(title)
    exclusive: dict[str, Any] = {}
    for part in parts(kind):
        if not isinstance(part, Flag):
            if part[1] is not None:
                _add(parser, target, part[1], choices)
            continue
        own = target
        if (name := part.declaration.exclusive) is not None:
            own = exclusive.setdefault(name, None) or target.add_mutually_exclusive_group()
            exclusive[name] = own
        own.add_argument(part.typed, *part.declaration.aliases, **_keywords(part, choices.get(part.name)))


def _keywords(flag: Flag, choices: Sequence[str] | None) -> dict[str, Any]:
    """Return the arguments of `add_argument`."""
    declaration = flag.declaration
    keywords: dict[str, Any] = {"help": declaration.help, "default": None}
    if flag.default is attrs.NOTHING:
        keywords["required"] = True
    if flag.base is bool:
        return keywords | {"action": "store_true" if declaration.is_one_way else argparse.BooleanOptionalAction}
    if declaration.number is not None or flag.base is not str:
        keywords["type"] = declaration.number or flag.base
    if flag.is_many:
        keywords["nargs"] = "+"
    if declaration.is_extended:
        keywords["action"] = "extend"
    optional = {"choices": choices or declaration.choices, "metavar": declaration.metavar}
    return keywords | {name: value for name, value in optional.items() if value is not None}


def read(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the typed values of the flags that are given, by name."""
    given = vars(parser.parse_args(list(arguments)))
    return {name: tuple(each) if isinstance(each, list) else each for name, each in given.items() if each is not None}


def parse(
    kind: type[T],
    prog: str | None,
    description: str,
    arguments: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    **settings: Any,
) -> T:
    """Return the settings of a sub-command.

    Args:
        kind: Their class.
        prog: Name of the command in ``--help``; default: that of the program.
        description: Its description there.
        arguments: Arguments behind the command.
        defaults: Values of flags that are not given, where they differ from those of the class.
        **settings: Further arguments of ``argparse.ArgumentParser``.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, **settings)
    add_flags(parser, kind)
    parser.set_defaults(**(defaults or {}))
    return build(kind, read(parser, arguments))
