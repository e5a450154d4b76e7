"""Run folders that the commit before the restructuring left are resumed, and end bitwise like whole runs."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import av_mnist
from compat.equality import CLOCKS, assert_as_recorded, is_machine_of_recording
from compat.scenarios import DATA, FOLDERS, RUNS, recipes, train_briefly
from recipe_common.cli import main
from recipe_common.comparison import compare
from recipe_common.errors import require
from recipe_common.report.curves import Picture
from recipes.tiny_recipe import RECIPE

pytestmark = pytest.mark.slow
ADDED = {"cremad": {"audio_frontend"}, "cmu_mosei": {"text_model"}, "cmu_mosi": {"text_model"}}
"""Settings of recipes that were added after the recording."""


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "save", lambda picture, path: [])
        patch.setattr(compare, "write_figure", lambda figure, path: [])
        patch.setattr(compare, "report_page", lambda *arguments: "")
        yield


def _copied(name: str, path: Path) -> Path:
    shutil.copytree(DATA / "folders" / name, path / "recorded")
    return path / "recorded"


def _call(name: str, output: Path, *flags: str) -> int:
    recipe = av_mnist.RECIPE if name == "av_mnist" else RECIPE
    return main(recipe, [*FOLDERS[name].flags, "--output", str(output), *flags])


def _state(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _result(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in found.items() if name != "memory"}


def _assert_same_run(found: Path, whole: Path) -> None:
    for name in ("last.pt", "best.pt"):
        assert_as_recorded(_state(found / name), _state(whole / name), name)
    assert_as_recorded(_result(found / "result.json"), _result(whole / "result.json"), "result")
    if is_machine_of_recording():
        numbers = [
            [{name: cell for name, cell in row.items() if name not in CLOCKS} for row in _rows(path / "metrics.csv")]
            for path in (found, whole)
        ]
        assert numbers[0] == numbers[1]


def _events(run: Path, tag: str) -> list[int]:
    module = require("tensorboard.backend.event_processing.event_accumulator")
    accumulator = module.EventAccumulator(str(run / "events"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(tag)]


@pytest.mark.parametrize("method", RUNS)
def test_a_recorded_run_is_resumed_bitwise(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = _copied(method, tmp_path)
    before = _state(output / method / "last.pt")
    assert (before["sampler"]["epoch"], before["sampler"]["offset"]) == (1, 3)
    assert _call(method, output, "--resume") == 0
    assert "going on at epoch 2, step 4" in capsys.readouterr().out
    assert _call(method, tmp_path / "whole") == 0
    _assert_same_run(output / method, tmp_path / "whole" / method)

    # Clocks, too: the first epoch is the recorded one, not one of equal numbers.
    assert _state(output / method / "last.pt")["history"][:1] == before["history"]
    assert _rows(output / method / "metrics.csv")[:1] == _rows(DATA / "folders" / method / method / "metrics.csv")
    assert _events(output / method, "train/running_loss") == [2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_a_recorded_run_of_a_real_recipe_is_resumed_bitwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = _copied("av_mnist", tmp_path)
    assert _call("av_mnist", output, "--resume") == 0
    assert "going on at epoch 1, step 3" in capsys.readouterr().out
    assert _call("av_mnist", tmp_path / "whole") == 0
    _assert_same_run(output / "ogm", tmp_path / "whole" / "ogm")


def test_a_recorded_comparison_is_completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = _copied("comparison", tmp_path)
    finished = output / "none" / "seed-0"
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    assert _call("comparison", output, "--resume") == 0
    printed = capsys.readouterr().out
    assert f"none: {finished} is finished; nothing to train." in printed
    assert printed.count("going on at epoch 2, step 3") == 1
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.name in before} == before

    assert _call("comparison", tmp_path / "whole") == 0
    for method in ("none", "ogm_ge"):
        for seed in ("seed-0", "seed-1"):
            _assert_same_run(output / method / seed, tmp_path / "whole" / method / seed)
    assert len(_rows(output / "comparison.csv")) == 4


def test_a_recorded_sweep_goes_on_with_the_trial_that_is_left(tmp_path: Path) -> None:
    output = _copied("sweep", tmp_path)
    before = _rows(output / "sweep.csv")
    assert _call("sweep", output, "--trials", "1") == 0
    rows = _rows(output / "sweep.csv")
    assert [row for row in rows if row in before] == before
    assert sorted(row["lr"] for row in rows) == ["0.05", "0.1", "0.2"]
    for trial in ("trial-0", "trial-1"):
        name = Path(trial, "none", "last.pt")
        assert (output / name).read_bytes() == (DATA / "folders" / "sweep" / name).read_bytes()
    assert (output / "trial-2" / "none" / "result.json").is_file()


def test_the_settings_of_every_recipe_were_recorded() -> None:
    assert set(recipes()) == {path.stem for path in (DATA / "settings").iterdir()}


@pytest.mark.parametrize("name", sorted(path.stem for path in (DATA / "settings").iterdir()))
def test_the_recorded_settings_of_a_recipe_are_those_of_today(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = json.loads((DATA / "settings" / f"{name}.json").read_text())
    (tmp_path / "none").mkdir()
    shutil.copyfile(DATA / "settings" / f"{name}.json", tmp_path / "none" / "config.json")
    assert train_briefly(recipes()[name], tmp_path, "--resume") == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "none" / "config.json").read_text())
    # A setting that was added later is None where the recorded run lacks it.
    added = dict.fromkeys(found["settings"].keys() - recorded["settings"].keys())
    assert added.keys() <= ADDED.get(name, set())
    assert (found["recipe"], found["settings"]) == (recorded["recipe"], {**recorded["settings"], **added})
