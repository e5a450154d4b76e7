"""Versions, bounds and papers agree between `pyproject.toml`, the constraints, the workflows and `CITATION.cff`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lowest_versions import lowest
from release_check import IN_WHEEL, CheckError, check_content, check_same
from versions_page import SETS, read, results, updated

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def project(*requirements: str) -> dict[str, Any]:
    return {
        "build-system": {"requires": ["hatchling>=1.27"]},
        "project": {"dependencies": list(requirements), "optional-dependencies": {"dev": ["hatchling>=1.27"]}},
    }


def test_lowest_versions_are_the_bounds() -> None:
    assert lowest(project("torch>=2.4", "opencv-contrib-python-headless>=4.9.0.80")) == [
        "hatchling==1.27",
        "opencv-contrib-python-headless==4.9.0.80",
        "torch==2.4",
    ]


@pytest.mark.parametrize("requirement", ["torch", "torch==2.4", "torch>=2.4,<3", "torch>2.4", "hatchling>=1.26"])
def test_a_dependency_without_one_lower_bound_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match=f"one lower bound.*{re.escape(requirement[:9])}"):
        lowest(project(requirement))


def test_every_dependency_is_pinned_at_its_bound_or_above() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = dict(line.split("==") for line in lowest(PROJECT))

    assert bounds.keys() <= pinned.keys()
    assert {name for name in bounds if _version(pinned[name]) < _version(bounds[name])} == set()


PAGE = """above

<!-- versions -->
| | a | b | c |
|---|---|---|---|
| torch | 1 | - | 3 |
<!-- end versions -->
below
"""


def test_a_run_replaces_its_cells_of_the_versions_page() -> None:
    page = updated(PAGE, "lowest", {"torch": "2.6.0", "tests/unit": "8 passed"})
    page = updated(page, "newest", {"tests/plugins": "9 passed"})
    page = updated(page, "newest", {"date": "2026-11-29", "torch": "3", "attrs": "26.1.0"}, anew=True)

    assert page.splitlines()[2:-1] == [
        "<!-- versions -->",
        f"| | {' | '.join(SETS)} |",
        "|---|---|---|---|",
        "| date | - | - | 2026-11-29 |",
        "| torch | 2.6.0 | - | 3 |",
        "| attrs | - | - | 26.1.0 |",
        "| `tests/unit` | 8 passed | - | - |",
        "<!-- end versions -->",
    ]
    assert read(page)["lowest"]["tests/unit"] == "8 passed"
    with pytest.raises(ValueError, match="should have a table between"):
        read("no table")


def test_results_are_counted_by_folder(tmp_path: Path) -> None:
    cases = [
        '<testcase classname="tests.unit.test_a"/>',
        '<testcase classname="tests.unit.test_a.TestB"><failure/></testcase>',
        '<testcase classname="tests.unit.model.test_b"/>',
        '<testcase classname="tests.parity.test_c"><skipped/></testcase>',
        '<testcase classname="tests.parity.test_c"><error/></testcase>',
    ]
    report = tmp_path / "results.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", encoding="utf-8")

    assert results(report) == {"tests/unit": "2 passed, 1 failed", "tests/parity": "1 failed, 1 skipped"}


def test_the_versions_page_is_about_the_bounds_and_the_constraints() -> None:
    columns = read((ROOT / "docs" / "versions.md").read_text(encoding="utf-8"))
    bounds = dict(line.split("==") for line in lowest(PROJECT))
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))

    assert {name: columns["developed with"].get(name) for name in bounds} == {name: pinned[name] for name in bounds}
    differing = {name for name in bounds if _release(columns["lowest"].get(name, "0")) != _release(bounds[name])}
    assert differing == set(), "`make lowest` writes that column"


def _release(text: str) -> list[int]:
    numbers = _version(text.split("+")[0])
    while numbers[-1:] == [0]:
        numbers.pop()
    return numbers


def _version(text: str) -> list[int]:
    return [int(part) for part in text.split(".")]


@pytest.mark.parametrize("workflow", ["tests", "wheel"])
def test_every_python_of_the_classifiers_is_tested(workflow: str) -> None:
    text = (ROOT / ".github" / "workflows" / f"{workflow}.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"python: \[(.*)\]", text)
    versions = re.findall(r'"([\d.]+)"', matrix)
    prefix = "Programming Language :: Python :: 3."
    classified = [each for each in PROJECT["project"]["classifiers"] if each.startswith(prefix)]

    assert [each.split(" :: ")[-1] for each in classified] == versions
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"


def test_the_citation_has_the_version_and_the_paper_of_every_method() -> None:
    assert f"\nversion: {PROJECT['project']['version']}\n" in CITATION
    cited = re.findall(r"# methods? (.*)", CITATION)
    assert sorted(", ".join(cited).split(", ")) == sorted(PROJECT["project"]["entry-points"]["modbalance"])


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda file: file.stem)
def test_make_targets_and_paths_of_workflows_exist(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in re.findall(r"run: make ([\w-]+)", text))
    assert all((ROOT / path).exists() for path in re.findall(r"(?:tests|docs)/[\w/.]+", text))


def environments(folder: Path, *variables: str) -> set[str]:
    """Return the environments of which `make env` would speak in a folder."""
    command = ["make", "--dry-run", "-f", str(ROOT / "Makefile"), "env", *variables]
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHON", "VENV", "MAKEFLAGS"}}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"(\S+)/bin/python -m pip", done.stdout))


def test_another_python_has_an_environment_of_its_own(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    other = tmp_path / ".venv" / "bin" / "python"
    named = f"PYTHON={sys.executable}"

    assert environments(tmp_path, named) == {".venv"}, "there is none yet"
    other.parent.mkdir(parents=True)
    other.write_text("#!/bin/sh\necho 3.99\n")
    other.chmod(0o755)
    assert environments(tmp_path, named) == {f".venv-{sys.version_info.major}.{sys.version_info.minor}"}
    assert environments(tmp_path) == {".venv"}
    assert environments(tmp_path, named, "VENV=mine") == {"mine"}
    other.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert environments(tmp_path, named) == {".venv"}


def test_the_content_of_wheel_and_sdist_is_checked() -> None:
    plugins = PROJECT["project"]["entry-points"]["modbalance"].values()
    wheel = [*IN_WHEEL, *(f"{each}/{file}" for each in plugins for file in ("__init__.py", "py.typed"))]
    sources = ["pyproject.toml", "LICENSE", "tests/conftest.py"]
    sdist = [*sources, "PKG-INFO"]
    check_content(wheel, sdist, sources)

    with pytest.raises(CheckError, match=r"no modbalance_agm/py\.typed"):
        check_content([each for each in wheel if each != "modbalance_agm/py.typed"], sdist, sources)
    with pytest.raises(CheckError, match=r"alone\. Found tests/conftest\.py"):
        check_content([*wheel, "tests/conftest.py"], sdist, sources)
    with pytest.raises(CheckError, match=r"sdist .* no LICENSE"):
        check_content(wheel, [each for each in sdist if each != "LICENSE"], sources)
    with pytest.raises(CheckError, match=r"sdist .* Found notes\.txt"):
        check_content(wheel, [*sdist, "notes.txt"], sources)


def test_wheels_that_differ_are_found(tmp_path: Path) -> None:
    wheels = {name: tmp_path / f"{name}.whl" for name in ("one", "same", "other", "more")}
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel, "w") as packed:
            packed.writestr("modbalance/a.py", "2" if name == "other" else "1")
            if name == "more":
                packed.writestr("modbalance/b.py", "")

    check_same(wheels["one"], wheels["same"])
    with pytest.raises(CheckError, match=r"Found other modbalance/a\.py"):
        check_same(wheels["one"], wheels["other"])
    with pytest.raises(CheckError, match=r"Found other modbalance/b\.py"):
        check_same(wheels["one"], wheels["more"])
