"""`modbalance new` writes a package that installs, is listed, and passes its own tests at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import modbalance
from modbalance.cli import main
from modbalance.testing import rules

pytestmark = pytest.mark.slow


def run(*arguments: str, path: Path) -> str:
    # The modbalance under test, whichever one is installed.
    paths = os.pathsep.join([str(path), str(Path(modbalance.__file__).parents[1])])
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=path, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_package_is_installed_listed_and_passes_its_tests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    assert main(["new", "My-method", "--folder", str(source)]) == 0
    printed = capsys.readouterr().out
    site.mkdir()
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-input", "--disable-pip-version-check"]
    run("-m", "pip", "install", *options, "--target", str(site), str(source), path=tmp_path)

    tests = ["-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(source), str(source / "tests")]

    assert f"{2 * len(rules()) + 1} passed" in run("-B", "-m", "pytest", *tests, path=site)
    listed = next(
        line
        for line in run("-m", "modbalance", "methods", "--no-cost", path=site).splitlines()
        if " my_method " in line
    )
    assert "modbalance-my-method 0.1.0" in listed
    assert "Scales the gradient of each encoder" in listed
    for part in ("modbalance_my_method/__init__.py", "tests/test_my_method.py", ".github/workflows/tests.yml"):
        assert f"  {part}\n" in printed
    lint = ["check", "--isolated", "--line-length", "120", "--select", "E,F,D", "--ignore", "D203,D213", str(source)]
    run("-m", "ruff", *lint, path=tmp_path)
    run("-m", "ruff", "format", "--isolated", "--check", "--line-length", "120", str(source), path=tmp_path)
