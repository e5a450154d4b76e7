"""The shared code of the recipes stands in layers: each imports those below it alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

COMMON = Path(__file__).parents[2] / "recipes" / "recipe_common"
LAYERS = (
    *("errors", "files", "arguments", "settings"),
    *("tasks", "models", "recipe", "data", "report", "training", "comparison", "cli"),
)


def _layer(file: Path) -> str:
    return file.relative_to(COMMON).parts[0].removesuffix(".py")


def _imported(file: Path) -> set[str]:
    """Return the layers that a file imports, at its top or inside of a function."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}".split(".") for node in nodes for alias in node.names]
    return {parts[1] for parts in names if parts[0] == "recipe_common"}


def test_every_file_has_a_layer() -> None:
    assert {_layer(file) for file in COMMON.glob("**/*.py")} == {*LAYERS, "__init__"}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_below_it(layer: str) -> None:
    below = {*LAYERS[: LAYERS.index(layer) + 1]}
    files = [file for file in COMMON.glob("**/*.py") if _layer(file) == layer]

    assert files
    assert {file.name: above for file in files if (above := _imported(file) - below)} == {}
