"""Sweeps: what is searched, how it is scored, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import attrs
import pytest

from common.cli import main
from common.comparison import compare
from common.comparison import sweep as sweep_module
from common.comparison.sweep import Space, parse_space
from common.errors import RecipeError
from common.report.curves import Picture
from common.training.interrupt import Interrupted
from recipes.tiny_recipe import RECIPE


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picture, "save", lambda picture, path: [])
    monkeypatch.setattr(compare, "write_report", lambda *arguments: [])


def sweep(output: Path, *flags: str) -> int:
    return main(RECIPE, ["sweep", "--output", str(output), "--epochs", "1", *flags])


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("lr=0.1:1", Space("lr", "float", (0.1, 1.0))),
        ("lr=1e-4:1e-1:log", Space("lr", "log", (1e-4, 1e-1))),
        ("batch_size=2:8:int", Space("batch_size", "int", (2, 8))),
        ("method=none,ogm_ge", Space("method", "categories", ("none", "ogm_ge"))),
        ("ogm_ge.alpha=0.1,0.8,1", Space("ogm_ge.alpha", "categories", (0.1, 0.8, 1))),
    ],
)
def test_spaces(text: str, space: Space) -> None:
    assert parse_space(text) == space


@pytest.mark.parametrize(
    "text",
    [
        *("lr", "=1,2", "lr=1:b", "lr=1:2:3:4", "lr=1:2:cubic", "batch_size=1.5:3:int", "lr="),
        *("lr=2:1", "lr=0:1:log", "lr=nan:1", "lr=0:inf"),
    ],
)
def test_a_space_that_cannot_be_read_is_explained(text: str) -> None:
    with pytest.raises(RecipeError, match=r"low:high:log.*Found `"):
        parse_space(text)


def test_a_grid_over_methods_and_seeds_trains_each_once_and_can_be_continued(tmp_path: Path) -> None:
    flags = ("--search", "method=none,ogm_ge", "seed=0,1", "--sampler", "grid")
    assert sweep(tmp_path, *flags, "--trials", "3") == 0
    assert len(rows(tmp_path)) == 3
    assert sweep(tmp_path, *flags, "--trials", "1") == 0
    found = rows(tmp_path)
    assert {(row["method"], row["seed"]) for row in found} == {(m, s) for m in ("none", "ogm_ge") for s in ("0", "1")}
    first = tmp_path / "trial-0" / found[0]["method"] / "metrics.csv"
    with first.open(newline="") as file:
        assert float(found[0]["val top-1"]) == max(float(row["val_accuracy"]) for row in csv.DictReader(file))


def test_options_and_flags_are_searched_together(tmp_path: Path) -> None:
    flags = ("--method", "ogm_ge", "--search", "ogm_ge.alpha=0.1:1.0", "lr=1e-3:1e-1:log", "--trials", "2")
    assert sweep(tmp_path, *flags) == 0
    for row in rows(tmp_path):
        assert 0.1 <= float(row["ogm_ge.alpha"]) <= 1.0
        assert 1e-3 <= float(row["lr"]) <= 1e-1


def test_the_values_of_a_trial_are_those_that_its_flags_would_get(tmp_path: Path) -> None:
    flags = ("--search", "optimizer=sgd", "batch_size=5", "plain=true", "milestones=1", "method=ogm_ge")
    assert sweep(tmp_path, *flags, "ogm_ge.alpha=0.3", "ogm.alpha=0.4", "--trials", "1") == 0
    settings = json.loads((tmp_path / "trial-0" / "ogm_ge" / "config.json").read_text())["settings"]
    names = ("optimizer", "batch_size", "plain", "milestones", "options")
    assert [settings[name] for name in names] == ["sgd", 5, True, [1], {"alpha": 0.3}]


def test_a_study_keeps_its_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, "--search", "lr=0.1,0.2", "--trials", "1") == 0
    assert sweep(tmp_path, "--search", "lr=0.1,0.3", "--trials", "1") == 2
    error = capsys.readouterr().err
    assert "Expected `--search lr` as in the earlier trials" in error
    assert "Fix: another --study" in error
    assert "Traceback" not in error


def test_a_second_call_tries_other_values(tmp_path: Path) -> None:
    for _ in range(2):
        assert sweep(tmp_path, "--search", "lr=0.01:0.1", "--sampler", "random", "--trials", "1") == 0
    first, second = (row["lr"] for row in rows(tmp_path))
    assert first != second


def test_a_trial_of_which_one_seed_fails_has_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--search", "bad-seed=1,9", "--sampler", "grid", "--trials", "2", "--seeds", "2")
    assert sweep(tmp_path, *flags) == 0
    assert [row["bad_seed"] for row in rows(tmp_path)] == ["9"]


def test_ctrl_c_leaves_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(tmp_path, "--search", "lr=0.01:0.1", "--trials", "1") == 0
    (tmp_path / "sweep.csv").unlink()

    def interrupted(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(sweep_module, "compare", interrupted)
    assert sweep(tmp_path, "--search", "lr=0.01:0.1", "--trials", "1") == 130
    assert len(rows(tmp_path)) == 1


def test_a_trial_that_fails_does_not_end_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--search", "lr=1e30,0.05", "--sampler", "grid", "--trials", "2", "--log-every", "1", "--epochs", "2")
    assert main(RECIPE, ["sweep", "--output", str(tmp_path), *flags]) == 0
    assert [row["lr"] for row in rows(tmp_path)] == ["0.05"]
    assert main(RECIPE, ["sweep", "--output", str(tmp_path / "all"), *flags[:1], "lr=1e30", *flags[2:]]) == 1
    printed = capsys.readouterr()
    assert "No trial finished" in printed.out
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--search", "lr=1:2", "--select", "test"), "validation split"),
        (("--search", "lr=1:2", "--methods", "none", "ogm"), "--search method=none,ogm"),
        (("--search", "speed=1:2"), "Found `speed`"),
        (("--search", "output=a,b"), "Found `output`"),
        (("--search", "optimizer=sgd,sdg"), "invalid choice: 'sdg'"),
        (("--search", "lr=-1:1"), "Found `--lr=-1.0`"),
        (("--search", "epochs=1:2"), "a whole number of at least 1"),
        (("--search", "plain=yes,no"), "true or false for a switch"),
        (("--search", "lr=1:2", "--storage", "nowhere"), "Expected a database at nowhere"),
        (("--search", "lr=1:2", "--sampler", "grid"), "categories only"),
    ],
)
def test_what_a_sweep_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert sweep(tmp_path, *flags) == 2
    assert message in capsys.readouterr().err


def test_a_protocol_that_selects_on_test_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = attrs.evolve(RECIPE, protocols={"official": {"select": "test"}})
    assert main(recipe, ["sweep", "--output", str(tmp_path), "--search", "protocol=fair,official"]) == 2
    assert "Found `--select test`, given or of the protocol" in capsys.readouterr().err
