"""Checks: rules applied to a method; their list, and one report on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch

from modbalance._plugins import load_method
from modbalance.errors import ConfigError, suggest
from modbalance.method import Method
from modbalance.testing import (
    _rules_effect,
    _rules_execution,
    _rules_model,
    _rules_options,
    _rules_state,
    _rules_values,
)
from modbalance.testing._case import Case
from modbalance.testing._models import ModelFactory
from modbalance.testing._report import RuleError, crash, report
from modbalance.testing._rules import PROCESSES, RULES, reason, summary

MODULES = (_rules_options, _rules_effect, _rules_state, _rules_values, _rules_model, _rules_execution)
"""The modules whose import registers the rules, in the order of the report."""

ORDERED = [name for module in MODULES for name, each in RULES.items() if each.__module__ == module.__name__]

Subject = str | type[Method]


@attrs.frozen(eq=False)
class Check:
    """One rule for one method with its options; call it to run it.

    Attributes:
        name: Name of the rule.
        case: The method with its options and model.
    """

    name: str
    case: Case

    @property
    def rule(self) -> str:
        """The rule in one sentence."""
        return summary(RULES[self.name])

    @property
    def reason(self) -> str:
        """Why it is a rule."""
        return reason(RULES[self.name])

    def __call__(self) -> None:
        """Run the check.

        Raises:
            RuleError: The method does not keep the rule, or keeps one that it declares not to keep.
        """
        exemption = self.case.build().exemptions().get(self.name)
        if exemption is None:
            self._run()
            return
        try:
            self._run()
        except RuleError:
            return
        raise RuleError(
            f"that the rule does not hold, as `exemptions()` declares: {exemption}",
            "that it holds",
            f"take {self.name!r} out of `exemptions()`",
        )

    def _run(self) -> None:
        # Threads that wait for each other take several times as long as one, on a model as small as this.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            RULES[self.name](self.case)
        except RuleError:
            raise
        except Exception as error:
            raise crash(error, self.rule) from error
        finally:
            torch.set_num_threads(threads)

    def __repr__(self) -> str:
        options = ",".join(f"{name}={_shown(value)}" for name, value in self.case.options.items())
        return f"{self.case.method.name}({options})-{self.name}"


def _shown(value: Any) -> str:
    # The default repr of a function holds an address, and processes of pytest-xdist compare names of tests.
    return getattr(value, "__name__", None) or repr(value)


def checks_for(
    method: Subject,
    *,
    options: Mapping[str, Any] | None = None,
    model: ModelFactory | None = None,
    processes: bool = True,
) -> list[Check]:
    """Return a check for every rule that a method must keep.

    Rules that the method declares not to keep, `Method.exemptions`, are expected to fail.

    Args:
        method: A method class, or the name of an installed method.
        options: Options with which it acts in four epochs of two steps, and ``preset``; options that declare a
            `short` value have it by default.
        model: Makes the model for names of modalities, a subclass of `SmallModel`; ``None``: the small model, with a
            fusion by one head where the method needs ``shared_head``.
        processes: Whether to include rules that start processes, joined by gloo; for places where none can be started.

    Raises:
        ConfigError: An option does not fit, or an exemption names no rule.
    """
    loaded = load_method(method) if isinstance(method, str) else method
    case = Case(loaded, dict(options or {}), **({} if model is None else {"model": model}))
    for name in case.build().exemptions():
        if name not in RULES:
            raise ConfigError(f"`exemptions()` of method `{case.method.name}` names {name!r}. {suggest(name, RULES)}")
    return [Check(name, case) for name in ORDERED if processes or name not in PROCESSES]


def check_method(
    method: Subject,
    *,
    options: Mapping[str, Any] | None = None,
    model: ModelFactory | None = None,
    processes: bool = True,
) -> None:
    """Run every check for a method, and raise one error with all rules that it does not keep.

    Arguments are those of `checks_for`.

    Raises:
        ConformanceError: Rules are not kept; the message says of each what was expected, what was found, and the fix.
        ConfigError: An option does not fit, or an exemption names no rule.
    """
    checks = checks_for(method, options=options, model=model, processes=processes)
    failures: dict[str, tuple[str, RuleError]] = {}
    for check in checks:
        try:
            check()
        except RuleError as error:
            failures[check.name] = check.rule, error
    if failures:
        case = checks[0].case
        given = f" with {dict(case.options)}" if case.options else ""
        raise report(f"Method `{case.method.name}`{given}", failures, len(checks))


def parametrize_with_checks(
    methods: Iterable[Subject | tuple[Subject, Mapping[str, Any]]], **arguments: Any
) -> Callable[[Any], Any]:
    """Return a pytest decorator that runs the decorated test once for each check, as its argument ``check``.

    Args:
        methods: Methods, or pairs of a method and its options.
        arguments: Further arguments of `checks_for`.
    """
    import pytest

    checks: list[Check] = []
    for each in methods:
        method, options = each if isinstance(each, tuple) else (each, {})
        checks += checks_for(method, options=options, **arguments)
    return pytest.mark.parametrize("check", checks, ids=repr)


def rules() -> dict[str, str]:
    """Return every rule by name, each in one sentence."""
    return {name: summary(RULES[name]) for name in ORDERED}
