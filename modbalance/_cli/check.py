"""`modbalance check NAME`: the rules of `modbalance.testing`, run for a method or for all of a distribution."""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from modbalance._cli.command import DONE, FAILED, Command, CommandError, Output
from modbalance._plugins import list_methods, load_method
from modbalance.errors import suggest
from modbalance.testing import Check, RuleError, checks_for

_OPTION = re.compile(r"(?:(\w+)\.)?(\w+)=(.*)", re.DOTALL)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="an installed method, or a distribution, all of whose methods are checked")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="[METHOD.]NAME=VALUE",
        help="an option with which the method acts in four epochs of two steps, such as patience=0; may be repeated",
    )
    parser.add_argument("--no-processes", action="store_true", help="leave out the rules that start processes")


def _run(parsed: argparse.Namespace, output: Output) -> int:
    reports: list[dict[str, Any]] = []
    chosen = _chosen(parsed.name)
    options = _options(parsed.option, chosen)
    for method in chosen:
        checks = checks_for(load_method(method), options=options[method], processes=not parsed.no_processes)
        output.show(f"{method}: {len(checks)} rules")
        reports.append({"method": method, "rules": [_report(check, output) for check in checks]})
    broken = sum(not rule["kept"] for report in reports for rule in report["rules"])
    output.show(f"{broken} of {sum(len(report['rules']) for report in reports)} rules are broken")
    output.json({"passed": broken == 0, "methods": reports})
    return FAILED if broken else DONE


def _chosen(name: str) -> list[str]:
    """Return the methods of a distribution, or the one method of that name."""
    if name == "none":
        raise CommandError(
            "`check` should be given a method. Found 'none', the baseline, which has no code to check: see "
            "`modbalance methods`."
        )
    listed = list_methods()
    names = [each.name for each in listed]
    if name in names:
        return [name]
    if chosen := [each.name for each in listed if _normal(each.distribution) == _normal(name)]:
        return chosen
    known = {*names, *(each.distribution for each in listed)}
    raise CommandError(
        f"`check` should be given an installed method or distribution. Found {name!r}. {suggest(name, known)} "
        "`pip install` the package first; `modbalance methods` lists all."
    )


def _options(given: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the options of each method; one that names no method is for all."""
    options: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for text in given:
        match = _OPTION.fullmatch(text)
        if match is None:
            raise CommandError(f"`--option` should be NAME=VALUE or METHOD.NAME=VALUE. Found {text!r}.")
        method, name, value = match.groups()
        if method is not None and method not in methods:
            raise CommandError(
                f"`--option {text}` should name a method that is checked. Found {method!r}. {suggest(method, methods)}"
            )
        for each in methods if method is None else [method]:
            options[each][name] = _value(value)
    return options


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text  # a word, such as a name of one of several choices


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _report(check: Check, output: Output) -> dict[str, Any]:
    report: dict[str, Any] = {"rule": check.name, "summary": check.rule, "kept": True}
    try:
        check()
    except RuleError as error:
        output.show(f"  broken  {check.name}: {check.rule}", textwrap.indent(str(error), "          "))
        return report | {"kept": False, "expected": error.expected, "found": error.found, "fix": error.fix}
    output.show(f"  kept    {check.name}")
    return report


COMMAND = Command("check", "check that a method keeps the rules of modbalance.testing", _add_arguments, _run)
