"""Telemetry: logged values of methods, summarized per quantity over the runs of all seeds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from recipe_common.cli import main
from recipe_common.report.events import EventLog
from recipe_common.report.folder import RunFolder
from recipe_common.report.telemetry import Quantity, find_sources, read_telemetry
from recipes.tiny_recipe import RECIPE


def _run(path: Path, method: str, looks: list[dict[str, float]], seed: int = 0) -> None:
    folder = RunFolder(path, "tiny", {"method": method, "seed": seed})
    folder.claim({})
    log = EventLog(folder.events, 0)
    for step, metrics in enumerate(looks):
        log.step(step, 1.0, metrics)
    log.close()


def _looks(*values: float) -> list[dict[str, float]]:
    return [{"ogm/coefficient/audio": value, "other/number": 7.0} for value in values]


def test_quantities_of_all_seeds_are_read_by_method(tmp_path: Path) -> None:
    _run(tmp_path / "ogm" / "seed-0", "ogm", _looks(0.5, 0.25))
    _run(tmp_path / "ogm" / "seed-1", "ogm", _looks(1.0, float("nan"), 0.75), seed=1)
    _run(tmp_path / "none", "none", [{}])
    expected = [Quantity("ogm", "coefficient/audio", ((0.5, 0.25), (1.0, 0.75)))]
    assert list(read_telemetry(find_sources(tmp_path, "tiny"))) == expected
    assert list(read_telemetry(find_sources(tmp_path, "tiny", ["none"]))) == []


def test_a_quantity_is_summarized_over_looks_and_runs() -> None:
    row = Quantity("m", "q", (tuple(float(value) for value in range(-10, 90)), (90.0,))).row()
    assert row["looks"] == 101
    assert [row[name] for name in ("5 %", "median", "95 %", "last")] == [-5, 40, 85, 89.5]
    assert row["negative"] == pytest.approx(10 / 101)


@pytest.mark.slow
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


SINGLE, SEEDS = ("ogm",), ("ogm/seed-0", "ogm/seed-1")


@pytest.mark.parametrize(
    ("compared", "chosen"),
    [
        (None, SEEDS),
        ("method,seed\nogm,0\nogm,1\n", SEEDS),
        ("method,seed\nogm,0\n", SINGLE),
        ("method,seed\nogm,1\n", ("ogm/seed-1",)),
        ("method,seed\nnone,0\n", SEEDS),
    ],
)
def test_a_single_run_and_those_of_several_seeds_are_not_mixed(
    compared: str | None, chosen: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*SINGLE, *SEEDS):
        _run(tmp_path / name, "ogm", _looks(0.5), seed=int(name.endswith("1")))
    if compared is not None:
        (tmp_path / "comparison.csv").write_text(compared)
    assert main(RECIPE, ["telemetry", "--output", str(tmp_path)]) == 0
    with (tmp_path / "telemetry.csv").open(newline="") as file:
        assert [row["looks"] for row in csv.DictReader(file)] == [str(len(chosen))]
    left_out = ", ".join(str(tmp_path / name) for name in (*SINGLE, *SEEDS) if name not in chosen)
    assert f"Left out, as they are not of the comparison of the others: {left_out}\n" in capsys.readouterr().out


def test_a_damaged_table_of_a_comparison_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path / "ogm", "ogm", _looks(0.5))
    (tmp_path / "comparison.csv").write_bytes(bytes(range(256)))
    assert main(RECIPE, ["telemetry", "--output", str(tmp_path)]) == 2
    assert f"Each row of {tmp_path / 'comparison.csv'} should have a method and a seed" in capsys.readouterr().err


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RECIPE, ["telemetry", "--output", str(tmp_path)]) == 2
    assert "Found none" in capsys.readouterr().err
