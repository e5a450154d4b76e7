"""What methods reported is summarized per quantity, over the runs of all seeds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from common.cli import main
from common.report.events import EventLog
from common.report.folder import RunFolder
from common.report.telemetry import Quantity, read_telemetry
from recipes.tiny_recipe import RECIPE


def _run(path: Path, method: str, looks: list[dict[str, float]]) -> None:
    folder = RunFolder(path, "tiny", {"method": method})
    folder.claim({})
    log = EventLog(folder.events, 0)
    for step, metrics in enumerate(looks):
        log.step(step, 1.0, metrics)
    log.close()


def _looks(*values: float) -> list[dict[str, float]]:
    return [{"ogm/coefficient/audio": value, "other/number": 7.0} for value in values]


def test_quantities_of_all_seeds_are_read_by_method(tmp_path: Path) -> None:
    _run(tmp_path / "ogm" / "seed-0", "ogm", _looks(0.5, 0.25))
    _run(tmp_path / "ogm" / "seed-1", "ogm", _looks(1.0, float("nan"), 0.75))
    _run(tmp_path / "none", "none", [{}])
    assert list(read_telemetry(tmp_path, "tiny")) == [Quantity("ogm", "coefficient/audio", ((0.5, 0.25), (1.0, 0.75)))]
    assert list(read_telemetry(tmp_path, "tiny", ["none"])) == []


def test_a_quantity_is_summarized_over_looks_and_runs() -> None:
    row = Quantity("m", "q", (tuple(float(value) for value in range(-10, 90)), (90.0,))).row()
    assert row["looks"] == 101
    assert [row[name] for name in ("5 %", "median", "95 %", "last")] == [-5, 40, 85, 89.5]
    assert row["negative"] == pytest.approx(10 / 101)


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path)]
    assert main(RECIPE, ["--method", "ogm", "--epochs", "2", *output]) == 0
    capsys.readouterr()
    assert main(RECIPE, ["telemetry", *output]) == 0
    with (tmp_path / "telemetry.csv").open(newline="") as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    assert {"coefficient/audio", "coefficient/visual", "nonfinite/audio"} <= rows.keys()
    assert 0 <= float(rows["coefficient/audio"]["5 %"]) <= float(rows["coefficient/audio"]["95 %"]) <= 1
    printed = capsys.readouterr().out
    assert "coefficient/audio" in printed
    assert "nonfinite" not in printed, "always 0"


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RECIPE, ["telemetry", "--output", str(tmp_path)]) == 2
    assert "Found none" in capsys.readouterr().err
