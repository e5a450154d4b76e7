"""Rules on declarations: name, options, repr."""

from __future__ import annotations

import inspect
from typing import Any

from modbalance._plugins import check_method as check_class
from modbalance._plugins import plugin_manager
from modbalance.errors import ConfigError, ModbalanceError
from modbalance.testing._case import Case
from modbalance.testing._report import RuleError
from modbalance.testing._rules import rule


class NoOption:
    """A value that no option should admit."""


@rule
def declarations(case: Case) -> None:
    """Name, needs, hooks and a summary are declared.

    Users find the method by its name and choose it by the first line of its docstring; a misspelt hook would be
    overlooked.
    """
    try:
        check_class(case.method)
        plugin_manager({case.method.name: case.method})
    except ModbalanceError as error:
        raise RuleError("a class that a plugin may offer", str(error), "do as the message says") from error
    if not inspect.cleandoc(vars(case.method).get("__doc__") or ""):
        raise RuleError(
            "a docstring whose first line says in one sentence what the method does",
            f"none on `{case.method.__name__}`",
            "write one: `modbalance methods` and `modbalance show` print it",
        )


@rule
def presets(case: Case) -> None:
    """Every preset of the method can be built, and every option has a value in each and a meaning.

    The default is the authors' code, `paper=` the paper: neither may be refused by the option's own check.
    """
    for preset in case.method.presets:
        try:
            case.method.configure(preset)
        except ConfigError as error:
            raise RuleError(
                f"a method with the options of the preset {preset!r}", str(error), "correct the default or the check"
            ) from error
    if missing := [name for name, field in case.method.options().items() if not field.metadata["doc"].strip()]:
        raise RuleError("words for each option", f"none for {missing}", "say in `option(..., doc)` unit and range")


@rule
def refused_options(case: Case) -> None:
    """Unknown options and values that make no sense are refused by a ConfigError that names the option.

    A misspelt option that is ignored, or a wrong value that acts later, costs a whole training.
    """
    for name in case.method.options():
        _expect_refusal(case, f"`{name}` of an unknown type", name, NoOption())
    _expect_refusal(case, "an unknown option", "no_such_option", 1)


def _expect_refusal(case: Case, what: str, name: str, value: Any) -> None:
    expected = f"a ConfigError for {what}, whose message names `{name}`"
    fix = "give the option a check, `option(default, check, doc)`: `gt`, `one_of`, `integer`, ..."
    try:
        case.build(**{name: value})
    except ConfigError as error:
        if f"`{name}`" not in str(error):
            raise RuleError(expected, f"the message {str(error)!r}", "name the option in the message") from error
    except Exception as error:
        raise RuleError(expected, f"{type(error).__name__}: {error}", fix) from error
    else:
        raise RuleError(expected, "that it was accepted", fix)


@rule
def representation(case: Case) -> None:
    """`repr` shows class and options, and no state.

    It stands in logs and errors: state would fill them with tensors, and read these on the host.
    """
    method = case.build()
    shown, name = repr(method), type(method).__name__
    missing = [f"{each}={value!r}" for each in method.options() if repr(value := getattr(method, each)) not in shown]
    if not shown.startswith(name) or missing:
        raise RuleError(
            f"`{name}(...)` with the value of each option",
            f"{shown!r}" + (f", without {', '.join(missing)}" if missing else ""),
            "leave `repr` to `@attrs.define(eq=False, kw_only=True)`",
        )
    training = case.training(method=method).run()
    (trained,) = training.optimizer._lifecycle.methods
    if (after := repr(trained)) != shown:
        raise RuleError(
            f"after a training the same as before, {shown!r}",
            f"{after[:300]!r}",
            "declare state with `state(default)`, and fields that are neither with `attrs.field(repr=False)`",
        )
