"""What is read from run folders, and the commands `plot` and `compare` that read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modbalance.cli import main
from modbalance.runs import RunFolderError, find_runs


def save(folder: Path, method: str, seed: int, accuracy: float | None = None, recipe: str = "tiny") -> Path:
    """Write a run of two epochs; unfinished without a test accuracy."""
    folder.mkdir(parents=True)
    config = {"recipe": recipe, "settings": {"method": method, "seed": seed}, "run": {}, "versions": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text("epoch,train_loss,val_accuracy,coefficient_audio\n1,2.0,0.4,\n2,1.5,0.5,0.9\n")
    if accuracy is not None:
        test = {"test_loss": 1.0, "test_accuracy": accuracy, "test_accuracy_audio": 0.25}
        result = {"method": method, "seed": seed, "best": {}, "test": test, "history": []}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two methods of two seeds, and a run that is not finished."""
    for method, first in (("none", 0.5), ("ogm", 0.6)):
        for seed in (0, 1):
            save(tmp_path / "out" / method / f"seed-{seed}", method, seed, first + seed / 10)
    save(tmp_path / "out" / "agm", "agm", 0)
    return tmp_path / "out"


def test_runs_are_found_below_and_named_once(runs: Path) -> None:
    found = find_runs([runs, runs / "agm"])

    assert [(run.method, run.seed) for run in found] == [("agm", 0), ("none", 0), ("none", 1), ("ogm", 0), ("ogm", 1)]
    assert found[0].history() == [
        {"epoch": 1, "train_loss": 2, "val_accuracy": 0.4},
        {"epoch": 2, "train_loss": 1.5, "val_accuracy": 0.5, "coefficient_audio": 0.9},
    ]


def test_compare_gives_means_and_paired_differences(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    none, ogm = found["methods"]
    assert (none["method"], ogm["method"], ogm["seeds"]) == ("none", "ogm", [0, 1])
    assert list(ogm["scores"]) == ["test_accuracy", "test_accuracy_audio"]
    assert ogm["scores"]["test_accuracy"]["mean"] == pytest.approx(0.65)
    assert ogm["scores"]["test_accuracy"]["std"] == pytest.approx(0.0707, abs=1e-4)
    assert ogm["scores"]["test_accuracy"]["difference_to_none"] == pytest.approx(0.1)
    assert none["scores"]["test_accuracy"]["difference_to_none"] is None
    assert found["unfinished"] == [str(runs / "agm")]


def test_compare_names_the_highest_mean_and_its_difference(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(runs / "only:audio", "only:audio", 0, 0.9)

    assert main(["compare", str(runs)]) == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "Highest test_accuracy: ogm, 0.650, +0.100 to `none`; above `none` in 2 of 2 seeds." in text
    assert main(["compare", str(runs), "--scores", "test_loss", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert best == {
        "score": "test_loss",
        "is_highest": False,
        "method": "none",
        "mean": 1.0,
        "difference_to_none": None,
    }


@pytest.mark.parametrize("score", ["test_mae", "test_mae_text", "test_mae_text_own", "test_loss"])
def test_compare_counts_the_seeds_in_which_an_error_is_smaller(
    score: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, values in (("none", (0.9, 0.8)), ("dgl", (0.95, 0.6))):
        for seed, value in enumerate(values):
            folder = save(tmp_path / method / f"seed-{seed}", method, seed, 0.5)
            result = json.loads((folder / "result.json").read_text())
            (folder / "result.json").write_text(json.dumps(result | {"test": {score: value}}))

    assert main(["compare", str(tmp_path)]) == 0

    text = " ".join(capsys.readouterr().out.split())
    assert f"Lowest {score}: dgl, 0.775, -0.075 to `none`; below `none` in 1 of 2 seeds." in text


def test_compare_leaves_out_columns_that_do_not_fit_and_says_so(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["compare", str(runs)]) == 0

    printed = capsys.readouterr().out
    assert "0.650 ± 0.071 (+0.100)" in printed
    assert "Not shown at this width: test_accuracy_audio" in printed
    assert f"Left out, as it is not finished: {runs / 'agm'}" in printed


def test_plot_writes_a_picture_of_finished_and_running_runs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "curves.png"

    assert main(["plot", str(runs), "--output", str(picture), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["columns"] == ["train_loss", "val_accuracy", "coefficient_audio"]
    assert len(found["runs"]) == 5
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "absent"], "absent should be the folder of a run, or of runs. Found no folder"),
        (["plot", "empty"], "Found no config.json in it: give the `--output` of a training"),
        (["compare", "out/agm"], "`compare` should be given finished runs. Found 1 without result.json"),
        (["compare", "out", "--scores", "f1"], "test_accuracy, test_accuracy_audio. Found f1"),
        (["compare", "out", "other"], "should be of one recipe. Found other, tiny"),
        (["compare", "out", "copy"], "Found two of ogm with seed 0"),
        (["plot", "out", "--columns", "f1"], "train_loss, val_accuracy, coefficient_audio. Found f1"),
        (["plot", "out", "--output", "curves.gif"], "ends in .png, .pdf, .svg. Found curves.gif"),
        (["compare", "damaged"], "config.json should be JSON. Found that it cannot be read"),
        (["compare", "partial"], "Found it without settings, run, versions"),
    ],
)
def test_errors_of_the_user(
    arguments: list[str], message: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    Path("empty").mkdir()
    save(Path("other"), "none", 0, 0.5, recipe="other")
    save(Path("copy"), "ogm", 0, 0.5)
    for name, text in {"damaged": "{", "partial": '{"recipe": "tiny"}'}.items():
        Path(name).mkdir()
        (Path(name) / "config.json").write_text(text)

    assert main(arguments) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("modbalance: ")


def test_damaged_metrics_are_an_error_that_names_the_file(runs: Path) -> None:
    (runs / "agm" / "metrics.csv").write_text("epoch,train_loss\n1,much\n")

    with pytest.raises(RunFolderError, match=r"metrics\.csv should be a table of numbers"):
        find_runs([runs / "agm"])[0].history()
