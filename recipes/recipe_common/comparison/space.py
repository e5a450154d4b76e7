"""Search spaces of a sweep: dimensions, parsed from ``--search``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import attrs

from recipe_common.errors import RecipeError
from recipe_common.settings.declaration import flat
from recipe_common.settings.shared import Settings
from recipe_common.training.settings import installed_methods

METHOD = "method"
"""Name of the dimension whose values are methods."""
_CATEGORIES, _FLOAT, _INT, _LOG = "categories", "float", "int", "log"
_FIXED = frozenset(
    {
        *("methods", "option", "select", "output", "resume", "update", "overwrite", "eval"),
    }
)
"""Flags that are the same for all trials, or have another name in a search."""


@attrs.frozen
class Space:
    """One dimension of the search.

    Attributes:
        name: A flag (``lr``), ``method``, or an option of a method (``METHOD.OPTION``).
        kind: ``categories``, ``float``, ``int`` or ``log``.
        values: The categories, or the two ends.
    """

    name: str
    kind: str
    values: tuple[Any, ...]

    @property
    def is_categorical(self) -> bool:
        """Whether `values` are all possible values, not two ends."""
        return self.kind == _CATEGORIES

    @property
    def method(self) -> str:
        """The method with this option; empty for a flag and for ``method``."""
        return method_of(self.name)

    @property
    def is_possible(self) -> bool:
        """Whether the two ends are in order, as Optuna demands."""
        if self.is_categorical:
            return True
        low, high = self.values
        return (0 if self.kind == _LOG else -math.inf) < low <= high < math.inf

    def suggest(self, trial: Any) -> Any:
        """Return the value that Optuna chooses for a trial.

        Raises:
            RecipeError: If the study has another kind of values, or other categories, for this name.
        """
        try:
            return self._suggest(trial)
        except ValueError as error:
            raise RecipeError(
                f"`--search {self.name}` should be as in the earlier trials of this study",
                found=f"a change ({str(error).rstrip('.')})",
                fix="choose another `--study`",
            ) from error

    def _suggest(self, trial: Any) -> Any:
        if self.is_categorical:
            return trial.suggest_categorical(self.name, self.values)
        low, high = self.values
        if self.kind == _INT:
            return trial.suggest_int(self.name, low, high)
        return trial.suggest_float(self.name, low, high, log=self.kind == _LOG)


def parse_space(text: str) -> Space:
    """Parse ``NAME=a,b,c`` (categories), ``NAME=low:high``, ``NAME=low:high:log`` or ``NAME=low:high:int``.

    Raises:
        RecipeError: If it is none of these, or if `low` is above `high` or, with ``log``, not above 0.
    """
    space = _space(text)
    if space is None or not space.is_possible:
        raise RecipeError(
            "`--search` should be NAME=a,b,c, NAME=low:high, NAME=low:high:log (both above 0) or NAME=low:high:int",
            found=f"`{text}`",
            fix="write one of these, where NAME is a flag such as lr, `method`, or METHOD.OPTION",
        )
    return space


def _space(text: str) -> Space | None:
    left, _, right = text.partition("=")
    method, dot, name = left.rpartition(".")
    name = f"{method}{dot}{name.replace('-', '_')}"  # as flags are typed
    ends = right.split(":")
    try:
        if name and right and len(ends) == 1:
            return Space(name, _CATEGORIES, tuple(_literal(value) for value in right.split(",")))
        if name and len(ends) == 3 and ends[2] == _INT:
            return Space(name, _INT, (int(ends[0]), int(ends[1])))
        if name and len(ends) in (2, 3) and ends[2:] in ([], [_LOG]):
            return Space(name, _LOG if ends[2:] else _FLOAT, (float(ends[0]), float(ends[1])))
    except ValueError:
        pass  # `parse_space` has the message
    return None


def _literal(text: str) -> Any:
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return text


def method_of(name: str) -> str:
    """Return METHOD of an option ``METHOD.OPTION``, or nothing."""
    return name.rpartition(".")[0]


def typed(name: str, value: Any) -> str:
    """Return the argument of the command line that gives a value to a flag or an option."""
    if method_of(name):
        return f"--option={name}={value}"
    flag = name.replace("_", "-")
    return {"true": f"--{flag}", "false": f"--no-{flag}"}.get(f"{value}".lower(), f"--{flag}={value}")


def check_search(search: Sequence[Space], base: Settings[Any]) -> list[str]:
    """Check that each dimension is a flag, or an option of a method that trials train.

    Args:
        search: The dimensions.
        base: Settings that all trials share.

    Returns:
        The methods that trials may train: those of the search, or else the one that is fixed.

    Raises:
        RecipeError: If a name is unknown, if a trial would train several methods, or if no trial trains the method of
            an option.
    """
    _check_names(base, search)
    methods = _methods(base, search)
    _check_owners(methods, [*(space.name for space in search), *(given.target for given in base.run.option)])
    return methods


def _check_names(base: Settings[Any], search: Sequence[Space]) -> None:
    names = flat(base).keys()
    for space in search:
        is_flag = space.name in names - _FIXED
        if not space.method and space.name != METHOD and not is_flag:
            raise RecipeError(
                "`--search` should name a flag of the training, `method` or METHOD.OPTION",
                found=f"`{space.name}`",
                fix="take a name from `--help`, such as batch-size",
            )


def _methods(base: Settings[Any], search: Sequence[Space]) -> list[str]:
    searched = [f"{value}" for space in search if space.name == METHOD for value in space.values]
    fixed = list(base.run.methods)
    if len(fixed) > 1 or "all" in (*fixed, *searched):
        names = [name for name in fixed if name != "all"]
        raise RecipeError(
            "Each trial should train one method",
            found=f"`{' '.join(searched or fixed)}`",
            fix=f"write `--search method={','.join(names if len(names) > 1 else ['none', *installed_methods()])}`",
        )
    return searched or fixed


def _check_owners(methods: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        owner = method_of(name)
        if owner and owner not in methods:
            raise RecipeError(
                f"Options should be those of methods that the trials train, {', '.join(methods)}",
                found=f"`{name}`, which none of them would use",
                fix=f"write `--methods {owner}`, or `--search method={','.join([*methods, owner])}`",
            )


def each_value(spaces: Sequence[Space]) -> list[list[dict[str, Any]]]:
    """Return, for each value of each space, its combinations with the values of the other spaces."""
    choices = {space.name: space.values for space in spaces}
    pinned = [{**choices, name: (value,)} for name, values in choices.items() for value in values]
    return [
        [dict(zip(each, combination, strict=True)) for combination in product(*each.values())]
        for each in pinned or [choices]
    ]
