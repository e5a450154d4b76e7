"""A newcomer puts a method into a training loop that exists, by the README, and repeats the first page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import release_check
from modbalance import list_methods
from newcomer.existing_training import BEGINNING
from support.fresh_environment import FreshEnvironment
from support.pages import ROOT, blocks

pytestmark = pytest.mark.slow


def sides(diff: str) -> tuple[str, str]:
    """Return the lines of a diff before the change, and after it."""
    before, after = ([line[1:] for line in diff.splitlines() if not line.startswith(sign)] for sign in "+-")
    return "\n".join(before), "\n".join(after)


def numbers(line: str) -> dict[str, float]:
    found: dict[str, float] = ast.literal_eval(line)
    return found


def test_the_change_of_the_readme_in_an_existing_loop(environment: FreshEnvironment, tmp_path: Path) -> None:
    (diff,) = blocks("README.md", "diff")
    before, after = sides(diff)
    script = BEGINNING + before
    (tmp_path / "train.py").write_text(script)
    assert environment.run("python -W error train.py", tmp_path) == ""

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    asked = re.findall(r"`(?:print\()?(optimizer\.(?:metrics|describe)\(\))\)?`", readme)
    assert asked == ["optimizer.metrics()", "optimizer.describe()"]
    where = ["import modbalance", "print(modbalance.__file__)"]
    lines = [script.replace(before, after), *where, *(f"print({each})" for each in asked)]
    (tmp_path / "train.py").write_text("\n".join(lines))
    place, metrics, *described = environment.run("python -W error train.py", tmp_path).splitlines()

    assert place.startswith(str(environment.folder))
    coefficients = [numbers(metrics)[f"ogm_ge/coefficient/{name}"] for name in ("audio", "visual")]
    assert min(coefficients) < 0.95, "the modality that is ahead is slowed down"
    assert max(coefficients) == 1
    assert re.search(r"audio +│ 2 +│ 80 +│ ogm_ge: 1", "\n".join(described)), "the one convolution, not its bias"


def test_the_first_page_does_what_it_says(environment: FreshEnvironment, tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text("\n".join(blocks("docs/start.md", "python")))

    lines = environment.run("python -W error start.py", tmp_path).splitlines()

    printed = [numbers(line) for line in lines if line.startswith("{")]
    promised = [numbers(text.replace(", ...", "")) for text in blocks("docs/start.md", "text")]
    assert len(printed) == len(promised) == 3
    for found, written in zip(printed, promised, strict=True):
        scale = 100 if "both" in written else 1
        assert {name: found[name] / scale for name in written} == pytest.approx(
            {name: value / scale for name, value in written.items()}, abs=0.02
        )
    assert "audio" in lines, "the starved modality"
    assert any(line.startswith("Verdict: imbalanced, audio is starved") for line in lines)


def test_every_method_of_the_wheel_trains(environment: FreshEnvironment, tmp_path: Path) -> None:
    (tmp_path / "methods.py").write_text(release_check.METHODS)
    printed = environment.run("python methods.py", tmp_path, {"PYTHONPATH": str(ROOT / "docs" / "examples")})
    assert set(printed.splitlines()) == {f"trained by {each.name}" for each in list_methods()}
