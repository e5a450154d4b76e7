"""Runs the tests with the lowest version of every dependency that `pyproject.toml` admits, or with the newest.

python tests/lowest_versions.py [--newest | --developed] [--environment FOLDER] [--keep] [--report] [PYTEST ARGUMENTS]

Builds a fresh virtual environment, of the Python that runs this script, in FOLDER (default: build/lowest, build/newest
or build/developed), installs the project with the extras `recipes`, `dev` and `docs` into it, and hands the remaining
arguments to pytest. With `--newest` nothing is constrained: pip takes the newest versions that fit each other. With
`--developed` the versions are those of `constraints.txt`. `--keep` takes the environment as it is. `--report` writes
the versions, and how many tests passed in each folder that ran, to docs/versions.md: name whole folders of tests.
`--constraints` prints the lowest versions and stops. The torches are built for CUDA: each download is about 3 GB.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
import venv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from versions_page import results, updated

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>\d[\w.]*)")
EXTRAS = ("recipes", "dev", "docs")


def lowest(project: dict[str, Any]) -> list[str]:
    """Return one constraint `NAME==VERSION` for each dependency of a project, its extras and its build.

    Args:
        project: What `pyproject.toml` holds.

    Raises:
        ValueError: If a dependency has another form than `NAME>=VERSION`, or two different lower bounds.
    """
    metadata = project["project"]
    required = [*project["build-system"]["requires"], *metadata["dependencies"]]
    required += [each for extra in metadata["optional-dependencies"].values() for each in extra]
    bounds: dict[str, str] = {}
    for requirement in required:
        match = REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise ValueError(f"A dependency should have one lower bound, NAME>=VERSION. Found {requirement!r}.")
        name, version = match["name"], match["version"]
        if bounds.setdefault(name, version) != version:
            raise ValueError(f"A dependency should have one lower bound. Found {name}>={bounds[name]} and >={version}.")
    return [f"{name}=={version}" for name, version in sorted(bounds.items())]


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--newest", action="store_true", help="install the newest versions instead of the lowest")
    kind.add_argument("--developed", action="store_true", help="install the versions of constraints.txt instead")
    parser.add_argument("--environment", type=Path, help="its folder; an older one is replaced")
    parser.add_argument("--keep", action="store_true", help="take the environment as it is")
    parser.add_argument("--report", action="store_true", help="write what passed to docs/versions.md")
    parser.add_argument("--constraints", action="store_true", help="print the versions and stop")
    options, of_pytest = parser.parse_known_args()
    name = "newest" if options.newest else "developed" if options.developed else "lowest"
    folder = options.environment = (options.environment or ROOT / "build" / name).absolute()
    if (folder.exists() or options.keep) and not (folder / "pyvenv.cfg").is_file():
        parser.error(f"--environment should be absent, or a virtual environment to replace. Found {folder}.")
    return options, of_pytest


def _python(folder: Path) -> Path:
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def _build(folder: Path, constraints: str) -> None:
    """Replace the environment in a folder by one with the project and its extras."""
    venv.create(folder, with_pip=True, clear=True)
    file = folder / "constraints.txt"
    file.write_text(constraints, encoding="utf-8")
    project = f"{ROOT}[{','.join(EXTRAS)}]"
    subprocess.run([_python(folder), "-m", "pip", "install", "-c", file, "-e", project], check=True)


def installed(python: Path, names: list[str]) -> dict[str, str]:
    """Return the versions of Python and of distributions in the environment of a Python."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    ).stdout
    versions = {_normal(each["name"]): each["version"] for each in json.loads(listed)}
    found = {name: versions[_normal(name)] for name in names if _normal(name) in versions}
    code = "import platform; print(platform.python_version())"
    release = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "Python": release} | found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _report(name: str, column: dict[str, str], *, anew: bool = False) -> None:
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), name, column, anew=anew), encoding="utf-8")


def main() -> int:
    """Build the environment, run pytest in it, and return its exit status."""
    options, of_pytest = _options()
    versions = lowest(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    if options.constraints:
        print("\n".join(versions))
        return 0
    folder: Path = options.environment
    developed = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if not options.keep:
        _build(folder, developed if options.developed else "" if options.newest else "\n".join(versions) + "\n")
    name = "newest" if options.newest else "developed with" if options.developed else "lowest"
    junit = folder / "results.xml"
    if options.report:
        found = installed(_python(folder), [each.split("==")[0] for each in versions])
        _report(name, found, anew=not options.keep)  # a test reads it
        of_pytest += ["--junitxml", str(junit)]
    status = subprocess.run([_python(folder), "-m", "pytest", *of_pytest], cwd=ROOT, check=False).returncode
    if options.report:
        _report(name, results(junit))
    return status


if __name__ == "__main__":
    sys.exit(main())
