"""Errors that users of recipes can cause have three parts: what should be, what was found, and a fix."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("recipes/*.py"), *ROOT.glob("recipes/recipe_common/**/*.py")])
EXPLAINED = ("RecipeError", "argument_error")
"""Calls that make an error of three parts, whether it is raised there or not."""
BARE = ("ArgumentTypeError", "ArgumentError")
"""Errors of argparse without parts."""
HELPER = ROOT / "recipes" / "recipe_common" / "arguments.py"
"""The one file that makes such an error, in `argument_error`."""


def _calls(tree: ast.AST, names: tuple[str, ...]) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) in names:
            yield node


def _name(function: ast.expr) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def _faults(call: ast.Call) -> list[str]:
    """Return what is wrong with the parts of an error."""
    parts = {keyword.arg: keyword.value for keyword in call.keywords} | dict(zip(("should",), call.args, strict=False))
    return [
        f"`{name}` {fault}" for name in ("should", "found", "fix") if (fault := _fault(parts.get(name))) is not None
    ]


def _fault(part: ast.expr | None) -> str | None:
    if part is None:
        return "is absent"
    if isinstance(part, ast.Constant) and (not isinstance(part.value, str) or not part.value.strip()):
        return "is empty"
    if isinstance(part, ast.JoinedStr) and not part.values:
        return "is empty"
    last = part.values[-1] if isinstance(part, ast.JoinedStr) else part
    text = last.value if isinstance(last, ast.Constant) else None
    ends = isinstance(text, str) and text.endswith(".") and not text.endswith("...")
    return "ends with a full stop, as the message does" if ends else None


def test_every_error_of_a_user_has_three_parts() -> None:
    faults, seen = {}, 0
    for file in FILES:
        for call in _calls(ast.parse(file.read_text(encoding="utf-8")), EXPLAINED):
            seen += 1
            if found := _faults(call):
                faults[f"{file.relative_to(ROOT)}:{call.lineno}"] = found

    assert faults == {}
    assert seen > 150


def test_errors_of_argparse_are_made_by_one_helper() -> None:
    makers = {
        file: len(calls) for file in FILES if (calls := [*_calls(ast.parse(file.read_text(encoding="utf-8")), BARE)])
    }

    assert makers == {HELPER: 1}


@pytest.mark.parametrize(
    ("call", "faults"),
    [
        ('RecipeError("x should be y", found="z", fix="write y")', []),
        ('errors.RecipeError(text, found=f"{z}", fix=FIX)', []),
        ('argument_error("x should be y", found="z")', ["`fix` is absent"]),
        ('RecipeError("x should be y")', ["`found` is absent", "`fix` is absent"]),
        ('RecipeError("x should be y", found="z", **parts)', ["`fix` is absent"]),
        ('RecipeError("x should be y", found="", fix=" ")', ["`found` is empty", "`fix` is empty"]),
        ('RecipeError(found=f"", fix=None)', ["`should` is absent", "`found` is empty", "`fix` is empty"]),
        ('RecipeError("x should be y", found="z", fix=f"{a}.")', ["`fix` ends with a full stop, as the message does"]),
    ],
)
def test_the_test_of_errors_sees_parts_that_are_missing(call: str, faults: list[str]) -> None:
    (found,) = _calls(ast.parse(f"def f():\n    raise {call}"), EXPLAINED)

    assert _faults(found) == faults
