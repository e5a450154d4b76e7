"""The command line: what it trains, what it refuses, what it prints."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from recipe_common.cli import main
from recipe_common.tasks.task import classification_metrics
from recipe_common.training.trainer import Trainer
from recipes.tiny_recipe import RECIPE, TinyDataset, TinyNet
from recipes.without_pictures import without_pictures


def _main(*arguments: str | Path | float) -> int:
    return main(RECIPE, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished comparison."""
    output = tmp_path_factory.mktemp("both")
    assert _main("--methods", "none", "ogm_ge", "--epochs", 2, "--output", output) == 0
    return output


@pytest.fixture(autouse=True)
def _no_pictures(both: Path) -> Iterator[None]:
    """Leave out, but for `both`, what takes most of the time and has its own tests."""
    with without_pictures():
        yield


def test_a_comparison_leaves_all_its_files(both: Path) -> None:
    for method in ("none", "ogm_ge"):
        names = {path.name for path in (both / method).iterdir()}
        assert names == {
            "best.pt",
            "last.pt",
            "config.json",
            "metrics.csv",
            "result.json",
            "curves.png",
            "curves.pdf",
            "events",
        }
        assert list((both / method / "events").glob("events.out.tfevents.*"))
    written = {path.name for path in both.iterdir() if path.is_file()}
    tables = {"comparison.md", "comparison.tex", "comparison.csv"}
    assert written == tables | {"comparison.png", "comparison.pdf", "scores.png", "scores.pdf", "report.html", ".lock"}


def test_config_tells_every_setting_and_the_versions(both: Path) -> None:
    config = json.loads((both / "ogm_ge" / "config.json").read_text())
    assert config["settings"]["lr"] == 0.05
    assert config["settings"]["options"] == {"alpha": 0.8}
    assert config["run"]["epochs"] == 2
    assert torch.__version__.startswith(config["versions"]["torch"])


def test_comparison_has_a_line_per_method(both: Path) -> None:
    with (both / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["none", "ogm_ge"]
    result = json.loads((both / "ogm_ge" / "result.json").read_text())
    assert float(rows[1]["test_accuracy"]) == result["test"]["test_accuracy"]


def test_best_checkpoint_is_that_of_the_best_epoch(both: Path) -> None:
    with (both / "none" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))  # the loss decides ties
    state = torch.load(both / "none" / "best.pt", weights_only=True)
    assert state["row"]["epoch"] == int(best["epoch"])


def test_synthetic_data_are_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _main("--epochs", 1, "--output", tmp_path / "synthetic")
    assert capsys.readouterr().out.count("SYNTHETIC DATA") == 2
    _main("--epochs", 1, "--output", tmp_path / "real", "--data-root", tmp_path)
    assert "SYNTHETIC" not in capsys.readouterr().out


def test_a_line_per_epoch_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _main("--epochs", 2, "--output", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if "val fused" in line)
    assert [line.split()[0] for line in lines[first : first + 3]] == ["epoch", "1", "2"]
    assert len({len(line) for line in lines[first : first + 3]}) == 1


def test_selection_on_test_is_said_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("--select", "test", "--epochs", 2, "--output", tmp_path) == 0
    assert "selected on the TEST split" in capsys.readouterr().out
    result = json.loads((tmp_path / "none" / "result.json").read_text())
    assert result["best"]["test_accuracy"] == result["test"]["test_accuracy"]
    assert result["best"]["test_accuracy"] == max(row["test_accuracy"] for row in result["history"])


def test_evaluating_the_best_checkpoint_repeats_its_scores(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("--eval", both / "ogm_ge" / "best.pt") == 0
    lines = capsys.readouterr().out.splitlines()
    test_line = next(line for line in lines if line.strip().startswith("test ")).split()
    result = json.loads((both / "ogm_ge" / "result.json").read_text())
    assert test_line[2] == f"{100 * result['test']['test_accuracy']:.1f}%"


@pytest.mark.parametrize("rule", ["linear", "cosine"])
def test_predictions_are_those_of_a_method_that_acts_in_evaluation(
    rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _main("--methods", "mmcosine", "--epochs", 2, "--option", f"eval_logits={rule}", "--output", tmp_path)
    best, result = tmp_path / "mmcosine" / "best.pt", json.loads((tmp_path / "mmcosine" / "result.json").read_text())

    model, data = TinyNet(), TinyDataset(12)
    model.load_state_dict(torch.load(best, weights_only=True)["model"])
    audio, visual, target = zip(*(data[0, i] for i in range(12)), strict=True)
    with torch.no_grad():
        features = model.eval().audio_net(torch.stack(audio)), model.visual_net(torch.stack(visual))
        parts = zip(features, model.head.linear.weight.split(6, 1), strict=True)
        cosines = [10 * torch.cosine_similarity(z[:, None], W[None], -1) for z, W in parts]
        logits = model.head(*features) if rule == "linear" else torch.stack(cosines).sum(0)
    expected = classification_metrics(logits, torch.tensor(target))["accuracy"]
    assert result["test"]["test_loss"] == pytest.approx(cross_entropy(logits, torch.tensor(target)).item(), rel=1e-5)
    assert result["test"]["test_accuracy"] == expected

    capsys.readouterr()
    assert _main("--eval", best) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("test ")).split()
    assert line[1:3] == [f"{result['test']['test_loss']:.4f}", f"{100 * expected:.1f}%"]


def test_a_finished_run_is_refused_with_the_choices(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (both / "none" / "last.pt").read_bytes()
    assert _main("--methods", "none", "--epochs", 2, "--output", both) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "--overwrite" in error
    assert (both / "none" / "last.pt").read_bytes() == before


def test_a_finished_run_is_only_shown_when_resumed(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (both / "none" / "last.pt").read_bytes()
    assert _main("--methods", "none", "ogm_ge", "--epochs", 2, "--output", both, "--resume") == 0
    out = capsys.readouterr().out
    assert "nothing to train" in out
    assert "top-1" in out
    assert (both / "none" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("flag", ["--resume", "--no-resume"])
def test_a_run_of_other_settings_is_refused(both: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (both / "none" / "config.json").read_bytes()
    assert _main("--methods", "none", "--lr", 0.5, "--epochs", 2, "--output", both, flag) == 2
    assert "lr was 0.05, now 0.5" in capsys.readouterr().err
    assert (both / "none" / "config.json").read_bytes() == before


def test_overwrite_begins_anew(tmp_path: Path) -> None:
    assert _main("--epochs", 1, "--output", tmp_path) == 0
    assert _main("--epochs", 1, "--lr", 0.5, "--output", tmp_path, "--overwrite") == 0
    assert json.loads((tmp_path / "none" / "config.json").read_text())["settings"]["lr"] == 0.5


def test_overwrite_spares_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "thesis.tex").write_text("years of work")
    assert _main("--output", tmp_path, "--overwrite") == 2
    assert "no config.json" in capsys.readouterr().err
    assert (tmp_path / "none" / "thesis.tex").exists()


def test_eval_of_a_checkpoint_of_another_recipe(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(both / "none" / "best.pt", weights_only=True)
    torch.save({**state, "recipe": "vggsound"}, tmp_path / "best.pt")
    assert _main("--eval", tmp_path / "best.pt") == 2
    assert "vggsound" in capsys.readouterr().err


def test_a_longer_run_is_unfinished_until_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _main("--epochs", 1, "--output", tmp_path) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", lambda trainer, stop: (_ for _ in ()).throw(KeyboardInterrupt))
        assert _main("--epochs", 2, "--output", tmp_path, "--resume") == 130
    assert not (tmp_path / "none" / "result.json").exists()


def test_fewer_epochs_than_done_cannot_be_resumed(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("--methods", "none", "--epochs", 1, "--output", both, "--resume") == 2
    assert "Found 2: write `--epochs 2`" in capsys.readouterr().err
