"""Commands that the documents name exist, with their flags."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from modbalance.cli import COMMANDS, parser

ROOT = Path(__file__).parents[2]
HISTORY = ROOT / "docs" / "changelog.md"
"""Names commands as they were."""
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FILES = [path for path in (*PAGES, *sorted((ROOT / ".github").rglob("*.*"))) if path != HISTORY]
SHELL = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:modbalance|make|python) [^`\n]+)`")
WORKFLOW = re.compile(r"^ *(?:- )?run: (?!\|)(.+)$|^ {10,}(\S*modbalance .+)$", re.MULTILINE)


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of each command that a document or workflow names."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in SHELL.findall(text) for line in block.splitlines()]
    lines += INLINE.findall(text)
    if path.suffix == ".yml":
        lines += [one or other for one, other in WORKFLOW.findall(text)]
    for line in lines:
        if words := shlex.split(line.replace("...", ""), comments=True):
            yield words


def problems(words: list[str]) -> list[str]:
    """Return what a command names that does not exist."""
    program = Path(words[0]).name
    if program == "make":
        targets = [word for word in words[1:] if "=" not in word]
        return [f"make {word}" for word in targets if word not in make_targets()]
    if program == "modbalance" and words[1] == "recipe" and words[2].islower():
        return recipe_problems(words[2], words[3:])
    if program == "modbalance" and words[1] != "COMMAND":
        return command_problems(words[1], words[2:])
    if program.startswith("python") and words[1].startswith("recipes/"):
        return recipe_problems(Path(words[1]).stem, words[2:])
    scripts = [word for word in words if re.fullmatch(r"(docs|tests)/\S+\.py", word)]
    return [script for script in scripts if not (ROOT / script).is_file()]


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def command_problems(name: str, arguments: list[str]) -> list[str]:
    if name not in [command.name for command in COMMANDS]:
        return [f"modbalance {name}"]
    (choices,) = (each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    known = choices.choices[name]._option_string_actions
    return [f"modbalance {name} {flag}" for flag in flags(arguments) if flag not in known]


def recipe_problems(name: str, arguments: list[str]) -> list[str]:
    if not (ROOT / "recipes" / f"{name}.py").is_file():
        return [f"recipes/{name}.py"]
    subcommands = [word for word in arguments[:1] if not word.startswith(("-", "$"))]
    known = re.findall(r"--[a-z][a-z-]*", recipe_help(name, *subcommands))
    return [f"{name} {flag}" for flag in flags(arguments) if flag not in known]


def flags(arguments: list[str]) -> list[str]:
    return [word.split("=")[0] for word in arguments if re.match("--[a-z]", word)]


@cache
def recipe_help(name: str, *subcommands: str) -> str:
    module = importlib.import_module(name)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
        importlib.import_module("recipe_common.cli").main(module.RECIPE, [*subcommands, "--help"])
    assert stopped.value.code == 0
    return printed.getvalue()


@pytest.mark.slow
def test_commands_and_flags_of_the_documents_exist() -> None:
    found = {path.relative_to(ROOT): [*commands(path)] for path in FILES}

    assert sum(map(len, found.values())) > 150
    assert [f"{path}: {each}" for path, named in found.items() for words in named for each in problems(words)] == []


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "modbalance list",
        "modbalance methods --nothing",
        "empty/bin/modbalance list",
        "python recipes/absent.py",
        "python docs/absent.py",
        "modbalance recipe av_mnist --nothing 3",
        "python recipes/cremad.py prepare --methods none",
    ],
)
@pytest.mark.slow
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert problems(shlex.split(command))
