"""A newcomer trains a recipe with several methods and reads the comparison, by the first page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.fresh_environment import FreshEnvironment
from support.pages import command

pytestmark = pytest.mark.slow
PAGE = "docs/start.md"
CELL = r"([\d.]+)(?: \(([+-][\d.]+)\))?"


def test_a_comparison_names_the_best_method_and_its_difference(environment: FreshEnvironment, tmp_path: Path) -> None:
    train, compare = command(PAGE, "modbalance recipe"), command(PAGE, "modbalance compare")
    settings = {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    trained = environment.run(f"{train} --seeds 1 --epochs 6", tmp_path, settings)
    printed = environment.run(compare, tmp_path)

    methods = re.search(r"--methods ([\w ]+)", train)
    assert methods is not None
    rows = re.findall(rf"^ (\w+) +1 +{CELL} +{CELL} +{CELL} *$", printed, re.MULTILINE)
    assert {row[0] for row in rows} == {*methods[1].split()} == {"none", "ogm", "dgl"}
    accuracies = {row[0]: float(row[1]) for row in rows}
    best = max(accuracies, key=lambda method: accuracies[method])
    sentence = re.search(r"Highest test_accuracy: (\w+), ([\d.]+), ([+-][\d.]+) to `none`; above", printed)
    assert sentence is not None
    assert (sentence[1], float(sentence[2])) == (best, accuracies[best])
    assert float(sentence[3]) == pytest.approx(accuracies[best] - accuracies["none"], abs=0.0011)
    assert "SYNTHETIC DATA" in trained
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert [path.name for path in (tmp_path / "cache" / "modbalance").iterdir()] == ["av_mnist"]
