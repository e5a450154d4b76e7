"""The shared code of the recipes stands in layers, each of which imports those below it alone, and names no method."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from modbalance import list_methods

COMMON = Path(__file__).parents[2] / "recipes" / "recipe_common"
LAYERS = (
    *("errors", "files", "arguments", "settings"),
    *("tasks", "models", "recipe", "data", "report", "training", "comparison", "cli"),
)
REPOSITORY = re.compile(r'"[\w.-]+/[\w.-]+"')
"""A literal such as "owner/name": sources of data are often named after a method."""
METHODS = [listing.name for listing in list_methods()]


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


def test_no_namespace_goes_below_the_parser() -> None:
    users = {file.name for file in COMMON.glob("**/*.py") if "Namespace" in file.read_text()}
    parsers = {file.name for file in COMMON.glob("**/*.py") if "import argparse" in file.read_text()}

    assert users == set()
    assert parsers == {"arguments.py", "cli.py", "command_line.py", "sweep.py"}


def _spellings(method: str) -> re.Pattern[str]:
    """Return a pattern of a method's name as a word or as a part of an identifier, with or without separators."""
    letters = "[-_]?".join(letter for letter in method if letter.isalnum())
    return re.compile(rf"(?<![a-z0-9]){letters}(?![a-z0-9])", re.IGNORECASE)


@pytest.mark.parametrize("method", METHODS)
def test_the_shared_code_names_no_method(method: str) -> None:
    word = _spellings(method)
    texts = {str(file.relative_to(COMMON)): REPOSITORY.sub("", file.read_text()) for file in COMMON.glob("**/*.py")}

    assert {name: found for name, text in texts.items() if (found := word.findall(text))} == {}


def test_the_test_of_names_sees_all_spellings_and_no_other_words() -> None:
    assert _spellings("ogm_ge").findall("OGM-GE, ogm_ge, build_OGMGE(), ogm_gem, logm_ge") == [
        "OGM-GE",
        "ogm_ge",
        "OGMGE",
    ]
    assert _spellings("relearning").findall("Re-learning; relearning_rate; prelearning") == [
        "Re-learning",
        "relearning",
    ]
