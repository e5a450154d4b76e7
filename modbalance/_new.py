"""Writes the package of a new method: a working method, tests of all rules, a page and a workflow."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from modbalance._plugins import list_methods
from modbalance.errors import ConfigError

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "package/__init__.py": "$package/__init__.py",
    "tests/test_rules.py": "tests/test_$method.py",
    "workflows/tests.yml": ".github/workflows/tests.yml",
}
"""By template in `modbalance/_template`, the file that it becomes."""


def write_package(name: str, folder: Path | None = None) -> Path:
    """Write a package whose tests pass once it is installed, and return its folder.

    Args:
        name: Name of the method, such as ``my-method``; hyphens become underscores.
        folder: Where to write it; ``None``: ``modbalance-<name>`` in the current folder.

    Raises:
        ConfigError: The name is no name for a method or is taken, or the folder holds files.
    """
    method = name.strip().lower().replace("-", "_")
    _check_name(name, method)
    words = {
        "method": method,
        "package": f"modbalance_{method}",
        "distribution": f"modbalance-{method.replace('_', '-')}",
        "class_name": "".join(part.capitalize() for part in method.split("_")),
        "title": method.replace("_", " ").capitalize(),
        "version": ".".join(version("modbalance").split(".")[:2]),
    }
    folder = Path(words["distribution"]) if folder is None else folder
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"The folder of a new package should not exist, or be empty. Found {folder}: pass another one, "
            "`--folder PATH`. Nothing was written."
        )
    for template, target in FILES.items():
        text = (files("modbalance") / "_template" / f"{template}.txt").read_text(encoding="utf-8")
        path = folder / Template(target).substitute(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(text).substitute(words), encoding="utf-8")
    (folder / words["package"] / "py.typed").touch()
    return folder


def _check_name(name: str, method: str) -> None:
    if not NAME.fullmatch(method) or keyword.iskeyword(method):
        raise ConfigError(
            f"The name of a method should be letters and digits, with hyphens or underscores between, and begin with "
            f"a letter. Found {name!r}: pass one such as my-method."
        )
    if method in {"none", *(each.name for each in list_methods())}:
        raise ConfigError(
            f"The name of a new method should be free. Found {method!r}, which is installed: pass another one, or "
            "uninstall its package first. `modbalance methods` shows all names."
        )
