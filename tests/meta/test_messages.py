"""What a person did wrong is explained in three parts: what was expected, what was found, and the fix."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(
    [*ROOT.glob("recipes/*.py"), *ROOT.glob("recipes/recipe_common/**/*.py"), *ROOT.glob("modbalance/**/*.py")]
)
PARTS = ("Expected ", "Found", "Fix: ")
EXPLAINED = ("RecipeError", "ArgumentTypeError")
"""Errors that a person sees as their message alone."""
FROM_ELSEWHERE = 0
"""How many of them get their whole message from a variable or a call, which nobody can look into here."""


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield where such an error is made, whether it is raised there or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) in EXPLAINED:
            yield node


def _name(function: ast.expr) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the texts that a file gives names to."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    return {
        target.id: node.value.value
        for node in assigned
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def _text(node: ast.expr, constants: dict[str, str]) -> str | None:
    """Return what is certain of a message; None if nothing is."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, constants) or "..."
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, constants) or "..." for part in node.values)
    if isinstance(node, ast.BinOp):
        parts = (_text(node.left, constants), _text(node.right, constants))
        return None if parts == (None, None) else "".join(part or "..." for part in parts)
    return constants.get(node.id) if isinstance(node, ast.Name) else None


def test_every_error_of_a_user_says_what_was_expected_what_was_found_and_the_fix() -> None:
    incomplete, seen, from_elsewhere = [], 0, []
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = _constants(tree)
        for call in _calls(tree):
            seen += 1
            place = f"{file.relative_to(ROOT)}:{call.lineno}"
            text = _text(call.args[0], constants) if call.args else ""
            if text is None:
                from_elsewhere.append(place)
            elif missing := [part.strip(": ") for part in PARTS if part not in text]:
                incomplete.append(f"{place} lacks {', '.join(missing)}: {text[:60]}")

    assert incomplete == []
    assert len(from_elsewhere) == FROM_ELSEWHERE, from_elsewhere
    assert seen > 150
