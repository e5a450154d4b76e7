"""A fresh virtual environment with the built wheel, as its users have one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs
import filelock

import release_check

PIP = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one as the value of `build_isolation`
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
}
"""Lets `pip install FOLDER` run as it is written, without a package index."""
SETTINGS = PIP | {"NO_COLOR": "1", "COLUMNS": "120", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
REPOSITORY_ONLY = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@attrs.frozen
class FreshEnvironment:
    """A virtual environment with the wheel.

    Attributes:
        folder: Its folder.
    """

    folder: Path

    def run(self, script: str, at: Path, settings: Mapping[str, str] = {}) -> str:
        """Run a shell script with the environment activated; return what it printed.

        Args:
            script: Lines of a shell, as a reader types them; the first one that fails ends it.
            at: Folder in which it runs.
            settings: Further environment variables.

        Raises:
            AssertionError: A command failed.
        """
        kept = {name: value for name, value in os.environ.items() if name not in REPOSITORY_ONLY}
        of_the_tests = str(Path(sys.executable).parent)
        others = [each for each in os.environ["PATH"].split(os.pathsep) if each != of_the_tests]
        path = os.pathsep.join([str(self.folder / "bin"), *others])
        done = subprocess.run(
            ["bash", "-euc", script],
            env={**kept, **SETTINGS, "PATH": path, "VIRTUAL_ENV": str(self.folder), **settings},
            capture_output=True,
            text=True,
            cwd=at,
            timeout=240,
        )
        assert done.returncode == 0, script + done.stdout + done.stderr
        return done.stdout


def built_wheel(shared: Path) -> Path:
    """Return the wheel of the working tree, built once in ``shared``, the folder of all workers of a test session."""
    folder = shared / "wheel"
    with filelock.FileLock(shared / "wheel.lock"):
        if not folder.is_dir():
            release_check.build(Path(sys.executable), unfinished := Path(tempfile.mkdtemp(dir=shared)))
            unfinished.rename(folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def fresh_environment(folder: Path, wheel: Path) -> FreshEnvironment:
    """Create a virtual environment in ``folder`` that sees the dependencies of this Python, and install the wheel."""
    release_check.Environment(folder, download=False).install(wheel)
    return FreshEnvironment(folder)
