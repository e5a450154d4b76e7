"""The registry of rules: functions of a case, by name, in the order of the report."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from modbalance.testing._case import Case

Rule = Callable[[Case], None]
RULES: dict[str, Rule] = {}
"""All rules by name."""

PROCESSES: set[str] = set()
"""Names of the rules that start processes."""


def rule(function: Rule) -> Rule:
    """Register a function that raises a RuleError where the method of a case does not keep a rule."""
    RULES[function.__name__] = function
    return function


def summary(function: Rule) -> str:
    """Return the rule in one sentence: the first line of the docstring."""
    return inspect.cleandoc(function.__doc__ or "").split("\n")[0]


def reason(function: Rule) -> str:
    """Return why the rule is one: the rest of the docstring, in one line."""
    return " ".join(inspect.cleandoc(function.__doc__ or "").split("\n")[1:]).strip()
