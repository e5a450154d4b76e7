"""Declaration of settings: fields of frozen attrs classes, which are flags of the command line and values in JSON too.

A class of settings holds fields made by `flag`, and groups of them made by `group`. Names are unique across groups, so
that the flags of a command line and the values in a file are flat, whatever groups the settings have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

from recipe_common.arguments import Number
from recipe_common.errors import RecipeError

T = TypeVar("T")
_FLAG, _GROUP = "flag", "group"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


@attrs.frozen
class Declaration:
    """Arguments of `flag`, for a field of a class of settings."""

    help: str | None
    number: Number | None
    choices: tuple[Any, ...] | None
    metavar: str | None
    aliases: tuple[str, ...]
    is_extended: bool
    is_one_way: bool
    exclusive: str | None
    is_identity: bool


def flag(
    default: Any = attrs.NOTHING,
    help: str | None = None,
    *,
    number: Number | None = None,
    choices: Iterable[Any] | None = None,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    is_extended: bool = False,
    is_one_way: bool = False,
    exclusive: str | None = None,
    is_identity: bool = True,
) -> Any:
    """Declare a setting. Its field is a ``bool``, ``int``, ``float``, ``str``, ``Path``, or of a class made of a text.

    ``X | None`` is optional, and ``tuple[X, ...]`` has several values. A ``bool`` is a switch ``--name``,
    ``--no-name``.

    Args:
        default: Value if the flag is not given; without a default the flag is required.
        help: Text of ``--help``, with ``%`` doubled as argparse has it.
        number: Bounds of a number.
        choices: All possible values.
        metavar: Name of the value in ``--help``.
        aliases: Other names of the flag, such as ``--method``.
        is_extended: Whether several uses of the flag add up.
        is_one_way: Whether a switch has no ``--no-name``.
        exclusive: Name of a set of flags of which a command line may have one.
        is_identity: Whether runs that differ in it are two runs, not a run and its continuation.
    """
    declaration = Declaration(
        help,
        number,
        None if choices is None else tuple(choices),
        metavar,
        aliases,
        is_extended,
        is_one_way,
        exclusive,
        is_identity,
    )
    return attrs.field(default=default, validator=_validate, metadata={_FLAG: declaration})


def group(kind: type[T]) -> T:
    """Declare settings that belong together, as a field of the class ``kind``."""
    field: Any = attrs.field(factory=kind, metadata={_GROUP: kind})
    return field


@attrs.frozen
class Flag:
    """One declared setting.

    Attributes:
        name: Name of the field; on the command line with dashes, in JSON as it is.
        base: Type of one value.
        is_many: Whether the value is a tuple of values of type ``base``.
        is_optional: Whether it may be None.
        default: Value if the flag is not given, or ``attrs.NOTHING``.
        declaration: Bounds, texts of ``--help`` and the other arguments of `flag`.
    """

    name: str
    base: type[Any]
    is_many: bool
    is_optional: bool
    default: Any
    declaration: Declaration

    @property
    def typed(self) -> str:
        """The name on the command line, with its dashes."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: Any) -> None:
        """Check a value.

        Raises:
            RecipeError: If it is of another type or out of bounds.
        """
        if value is None and self.is_optional:
            return
        is_right = isinstance(value, tuple) and all(map(self._admits, value)) if self.is_many else self._admits(value)
        if not is_right:
            raise RecipeError(
                f"`{self.typed}` should be {self._expected()}",
                found=f"`{value!r}`",
                fix="give such a value, or leave the flag out",
            )

    def _admits(self, value: Any) -> bool:
        number, choices = self.declaration.number, self.declaration.choices
        if isinstance(value, bool) != (self.base is bool):
            return False
        if not isinstance(value, (int, float) if self.base is float else self.base):
            return False
        return (number is None or number.accepts(value)) and (choices is None or value in choices)

    def _expected(self) -> str:
        number, choices = self.declaration.number, self.declaration.choices
        if choices is not None:
            words = f"one of {', '.join(map(str, choices))}"
        else:
            words = number.words if number is not None else _WORDS.get(self.base, self.base.__name__)
        return f"several values, each {words}" if self.is_many else words

    def from_json(self, value: Any) -> Any:
        """Return the typed value for a value read from JSON; one of another type stays as it is, for `check`."""
        if isinstance(value, list):
            return tuple(self._one_from_json(each) for each in value)
        return self._one_from_json(value)

    def _one_from_json(self, value: Any) -> Any:
        return self.base(value) if isinstance(value, str) and self.base not in (bool, int, float, str) else value


def to_json(value: Any) -> Any:
    """Return the value of a setting as a value for JSON."""
    if isinstance(value, tuple):
        return [to_json(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def parts(kind: Any) -> tuple[Flag | tuple[str, type[Any] | None], ...]:
    """Return the flags of a class of settings, and name and class of its groups, in the order of their declaration.

    The class of a group is None if each instance has its own.
    """
    return _parts(kind)


@cache
def _parts(kind: type[Any]) -> tuple[Flag | tuple[str, type[Any] | None], ...]:
    hints = get_type_hints(kind)
    found: list[Flag | tuple[str, type[Any] | None]] = []
    for field in attrs.fields(kind):
        declaration = field.metadata.get(_FLAG)
        if declaration is None:
            found.append((field.name, field.metadata.get(_GROUP)))
        else:
            base, is_many, is_optional = _shape(hints[field.name])
            found.append(Flag(field.name, base, is_many, is_optional, field.default, declaration))
    return tuple(found)


def _shape(annotation: Any) -> tuple[type[Any], bool, bool]:
    """Return the base of an annotation, whether it is a tuple, and whether None is one of its values."""
    is_union = isinstance(annotation, UnionType) or get_origin(annotation) is Union
    (inner,) = [each for each in get_args(annotation) if each is not NoneType] if is_union else [annotation]
    is_many = get_origin(inner) is tuple
    return (get_args(inner)[0] if is_many else inner), is_many, is_union


def flags_of(*kinds: type[Any]) -> dict[str, Flag]:
    """Return all flags of classes of settings and of their groups by name.

    Raises:
        TypeError: If two of them share a name.
    """
    found: dict[str, Flag] = {}
    for kind in kinds:
        for part in parts(kind):
            own = {part.name: part} if isinstance(part, Flag) else flags_of(part[1]) if part[1] is not None else {}
            if taken := found.keys() & own.keys():
                raise TypeError(f"`{kind.__name__}` declares {', '.join(sorted(taken))}, which is declared already.")
            found |= own
    return found


def _validate(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    flag = next(part for part in parts(type(instance)) if isinstance(part, Flag) and part.name == attribute.name)
    flag.check(value)


def build(kind: type[T], values: Mapping[str, Any], **given: Any) -> T:
    """Return settings of a class.

    Args:
        kind: The class.
        values: Values by name, for its groups too; names of other classes are ignored.
        **given: Values of fields that are settings themselves.

    Raises:
        RecipeError: If a value is of another type or out of bounds.
    """
    fields = dict(given)
    for part in parts(kind):
        if isinstance(part, Flag):
            if part.name in values:
                fields[part.name] = values[part.name]
        elif part[1] is not None:
            fields[part[0]] = build(part[1], values)
    return kind(**fields)


def flat(settings: Any) -> dict[str, Any]:
    """Return all values of settings by name."""
    return {flag.name: value for flag, value in walk(settings)}


def walk(settings: Any) -> Iterator[tuple[Flag, Any]]:
    """Yield every flag of settings and its value, groups included."""
    for part in parts(type(settings)):
        if isinstance(part, Flag):
            yield part, getattr(settings, part.name)
        else:
            yield from walk(getattr(settings, part[0]))


def changed(settings: T, **values: Any) -> T:
    """Return a copy of settings with other values for some names, whichever groups these belong to.

    Raises:
        TypeError: If no setting has a name.
        RecipeError: If a value is of another type or out of bounds.
    """
    if unknown := values.keys() - flat(settings).keys():
        raise TypeError(f"`{type(settings).__name__}` has no {', '.join(sorted(unknown))}.")
    return _changed(settings, values)


def _changed(settings: Any, values: Mapping[str, Any]) -> Any:
    changes = {}
    for part in parts(type(settings)):
        if not isinstance(part, Flag):
            changes[part[0]] = _changed(getattr(settings, part[0]), values)
        elif part.name in values:
            changes[part.name] = values[part.name]
    return attrs.evolve(settings, **changes)
