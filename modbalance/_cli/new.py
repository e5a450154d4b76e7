"""`modbalance new NAME`: the package of a new method."""

from __future__ import annotations

import argparse
from pathlib import Path

from modbalance._cli.command import DONE, Command, Output
from modbalance._new import write_package


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the method, such as my-method")
    parser.add_argument("--folder", type=Path, help="where to write it; default: modbalance-NAME in the current folder")


def _run(parsed: argparse.Namespace, output: Output) -> int:
    folder = write_package(parsed.name, parsed.folder)
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    commands = [f"cd {folder}", "pip install -e '.[dev]'", "pytest"]
    lines = [f"Wrote a working method to {folder}:", *(f"  {each}" for each in written)]
    output.show("\n".join([*lines, "", "Next:", *(f"  {each}" for each in commands)]))
    output.json({"folder": str(folder), "files": written, "next": commands})
    return DONE


COMMAND = Command(
    "new", "write the package of a new method, whose tests pass once it is installed", _add_arguments, _run
)
