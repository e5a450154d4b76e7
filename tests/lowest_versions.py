"""Runs the tests with the lowest version of every dependency that `pyproject.toml` admits, or with the newest.

python tests/lowest_versions.py [--newest] [--environment FOLDER] [ARGUMENTS OF PYTEST]

Builds a fresh virtual environment, of the Python that runs this script, in FOLDER (default: build/lowest, or
build/newest), installs the project with the extras `recipes` and `dev` into it, and hands the remaining arguments to
pytest. With `--newest` nothing is constrained: pip takes the newest versions that fit each other. `--constraints`
prints the lowest versions and stops. Both torches are built for CUDA: each download is about 3 GB.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>\d[\w.]*)")
EXTRAS = ("recipes", "dev")


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


def main() -> int:
    """Build the environment, run pytest in it, and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--environment", type=Path, help="its folder; an older one is replaced")
    parser.add_argument("--newest", action="store_true", help="install the newest versions instead of the lowest")
    parser.add_argument("--constraints", action="store_true", help="print the versions and stop")
    options, of_pytest = parser.parse_known_args()
    versions = lowest(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    if options.constraints:
        print("\n".join(versions))
        return 0

    folder: Path = options.environment or ROOT / "build" / ("newest" if options.newest else "lowest")
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        parser.error(f"--environment should be absent, or a virtual environment to replace. Found {folder}.")
    venv.create(folder, with_pip=True, clear=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("" if options.newest else "\n".join(versions) + "\n", encoding="utf-8")
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    project = f"{ROOT}[{','.join(EXTRAS)}]"
    subprocess.run([python, "-m", "pip", "install", "-c", constraints, "-e", project], check=True)
    return subprocess.run([python, "-m", "pytest", *of_pytest], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
