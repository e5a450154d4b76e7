"""Sweeps: what is searched, how it is scored, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import attrs
import pytest

from recipe_common.cli import main
from recipe_common.comparison import compare
from recipe_common.comparison import sweep as sweep_module
from recipe_common.comparison.space import Space, each_value, parse_space
from recipe_common.errors import RecipeError
from recipe_common.report.curves import Picture
from recipe_common.training.interrupt import Interrupted
from recipes.tiny_recipe import RECIPE

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picture, "save", lambda picture, path: [])
    monkeypatch.setattr(compare, "write_report", lambda *arguments: [])


def sweep(output: Path, *flags: str) -> int:
    return main(RECIPE, ["sweep", "--output", str(output), "--epochs", "1", *flags])


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scored(output: Path) -> list[dict[str, str]]:
    return [row for row in rows(output) if row["val top-1"]]


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
    flags = ("--search", "optimizer=sgd", "batch_size=5", "plain=true", "milestones=1", "method=ogm_ge,ogm")
    assert sweep(tmp_path, *flags, "ogm_ge.alpha=0.3", "ogm.alpha=0.4", "--sampler", "grid", "--trials", "2") == 0
    names = ("optimizer", "batch_size", "plain", "milestones", "options")
    for method, alpha in (("ogm_ge", 0.3), ("ogm", 0.4)):
        (config,) = tmp_path.glob(f"trial-*/{method}/config.json")
        settings = json.loads(config.read_text())["settings"]
        assert [settings[name] for name in names] == ["sgd", 5, True, [1], {"alpha": alpha}]


def test_methods_of_the_search_replace_the_fixed_one(tmp_path: Path) -> None:
    assert sweep(tmp_path, "--methods", "ogm", "--search", "method=none,ogm_ge", "--sampler", "grid") == 0
    assert sorted(path.parent.name for path in tmp_path.glob("trial-*/*/config.json")) == ["none", "ogm_ge"]


def test_a_study_keeps_its_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, "--search", "lr=0.1,0.2", "--trials", "1") == 0
    assert sweep(tmp_path, "--search", "lr=0.1,0.3", "--trials", "1") == 2
    error = capsys.readouterr().err
    assert "`--search lr` should be as in the earlier trials" in error
    assert ": choose another `--study`" in error
    assert "Traceback" not in error


def test_a_second_call_tries_other_values(tmp_path: Path) -> None:
    for _ in range(2):
        assert sweep(tmp_path, "--search", "lr=0.01:0.1", "--sampler", "random", "--trials", "1") == 0
    first, second = (row["lr"] for row in rows(tmp_path))
    assert first != second


def test_a_trial_of_which_one_seed_fails_has_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--search", "bad-seed=1,9", "--sampler", "grid", "--trials", "2", "--seeds", "2")
    assert sweep(tmp_path, *flags) == 0
    assert [row["bad_seed"] for row in scored(tmp_path)] == ["9"]


def test_ctrl_c_leaves_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(tmp_path, "--search", "lr=0.01:0.1", "--trials", "1") == 0
    (tmp_path / "sweep.csv").unlink()

    def interrupted(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(sweep_module, "compare", interrupted)
    assert sweep(tmp_path, "--search", "lr=0.01:0.1", "--trials", "1") == 130
    assert [row["failure"] for row in rows(tmp_path)] == ["", "Interrupted"]
    assert len(scored(tmp_path)) == 1


def test_a_trial_that_raises_fails_alone_and_is_listed_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, "--search", "bad_seed=-1,0", "--sampler", "grid") == 0
    (good,) = scored(tmp_path)
    (bad,) = (row for row in rows(tmp_path) if row not in scored(tmp_path))
    assert (good["bad_seed"], good["failure"]) == ("-1", "")
    assert (bad["bad_seed"], bad["failure"]) == ("0", "the seed is bad")
    assert f"trial-{bad['trial']} failed: the seed is bad" in capsys.readouterr().out
    assert "ValueError: the seed is bad" in (tmp_path / f"trial-{bad['trial']}" / "log.txt").read_text()


def test_an_error_of_a_user_that_only_a_trial_meets_is_a_failed_trial(tmp_path: Path) -> None:
    assert sweep(tmp_path, "--search", "bad=false,true", "--sampler", "grid") == 0
    assert {row["bad"]: row["failure"] for row in rows(tmp_path)} == {
        "false": "",
        "true": "nowhere should hold wav files. Found none: give `--data-root DIR`.",
    }


def test_ctrl_c_between_two_looks_leaves_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_module, "compare", stopped)
    assert sweep(tmp_path, "--search", "lr=0.01:0.1") == 130
    assert [row["failure"] for row in rows(tmp_path)] == ["KeyboardInterrupt"]


def test_a_score_that_is_not_a_number_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "isnan", lambda score: True)
    assert sweep(tmp_path, "--search", "lr=0.01:0.1", "--trials", "1") == 1
    assert [row["failure"] for row in rows(tmp_path)] == ["its score is not a number"]


def test_a_trial_that_fails_does_not_end_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--search", "lr=1e30,0.05", "--sampler", "grid", "--trials", "2", "--log-every", "1", "--epochs", "2")
    assert main(RECIPE, ["sweep", "--output", str(tmp_path), *flags]) == 0
    assert [row["lr"] for row in scored(tmp_path)] == ["0.05"]
    (failure,) = filter(None, (row["failure"] for row in rows(tmp_path)))
    assert failure.startswith("the loss became")
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
        (("--search", "lr=1:2", "--storage", "nowhere"), "nowhere should be a database"),
        (("--search", "lr=1:2", "--sampler", "grid"), "categories only"),
        (("--search", "lr=1:2", "--methods", "all"), "--search method=none,agm,cggm"),
        (("--search", "method=none,all"), "Found `none all`"),
        (("--search", "ogm_ge.alpha=0.1:1.0"), "Found `ogm_ge.alpha`, which none of them would use"),
        (("--search", "method=none,ogm", "ogm_ge.alpha=1,2"), "--search method=none,ogm,ogm_ge"),
        (("--search", "lr=1:2", "--option", "ogm_ge.alpha=1"), "Found `ogm_ge.alpha`"),
        (("--search", "lr=1:2", "--study", "../elsewhere"), "Found `../elsewhere`"),
        (("--search", "lr=1:2", "--study", "trial-0"), "Found `trial-0`"),
    ],
)
def test_what_a_sweep_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert sweep(tmp_path, *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--methods", "ogm_ge", "--search", "ogm_ge.alpha=0.5,-3"), "Found `alpha = -3`"),
        (("--methods", "ogm_ge", "--search", "ogm_ge.alpha=-3:0.5"), "Found `alpha = -3.0`"),
        (("--methods", "ogm_ge", "--search", "ogm_ge.speed=1,2"), "speed"),
        (("--methods", "ogm_ge", "--search", "lr=1:2", "--option", "alpha=-3"), "Found `alpha = -3`"),
        (("--search", "method=none,nosuch"), "No installed method is named 'nosuch'"),
        (("--methods", "nosuch", "--search", "lr=1:2"), "No installed method is named 'nosuch'"),
    ],
)
def test_methods_and_options_are_checked_before_the_first_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert sweep(tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_method_that_does_not_apply_to_the_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    excluded = {"ogm": "it is loud"}
    recipe = attrs.evolve(RECIPE, load=lambda settings: attrs.evolve(RECIPE.load(settings), excluded=excluded))
    assert main(recipe, ["sweep", "--output", str(tmp_path), "--search", "method=none,ogm"]) == 2
    assert "Found ogm (it is loud)" in capsys.readouterr().err


def test_options_that_bound_each_other_are_checked_together(tmp_path: Path) -> None:
    recipe = attrs.evolve(RECIPE, method_options={"ogm_ge": {"end_epoch": 3}})
    search = ("--search", "ogm_ge.start_epoch=0,5", "ogm_ge.end_epoch=3,9", "--sampler", "grid")
    assert main(recipe, ["sweep", "--output", str(tmp_path), "--epochs", "1", "--methods", "ogm_ge", *search]) == 0
    assert {(row["ogm_ge.start_epoch"], row["ogm_ge.end_epoch"]) for row in rows(tmp_path) if row["failure"]} == {
        ("5", "3")
    }
    assert len(scored(tmp_path)) == 3


def test_each_value_meets_all_values_of_the_other_spaces() -> None:
    spaces = [parse_space("m.a=1,2"), parse_space("m.b=3:4:int")]
    assert each_value(spaces) == [
        [{"m.a": 1, "m.b": 3}, {"m.a": 1, "m.b": 4}],
        [{"m.a": 2, "m.b": 3}, {"m.a": 2, "m.b": 4}],
        [{"m.a": 1, "m.b": 3}, {"m.a": 2, "m.b": 3}],
        [{"m.a": 1, "m.b": 4}, {"m.a": 2, "m.b": 4}],
    ]
    assert each_value([]) == [[{}]]


def test_a_named_study_has_a_folder_of_its_own(tmp_path: Path) -> None:
    calls = {"a": "lr=0.1", "b": "lr=0.2", "tiny": "lr=0.3"}
    for study, search in calls.items():
        assert sweep(tmp_path, "--search", search, "--study", study, "--trials", "1") == 0
    found = {study: tmp_path if study == RECIPE.name else tmp_path / study for study in calls}
    for study, folder in found.items():
        assert [f"lr={row['lr']}" for row in rows(folder)] == [calls[study]]
        settings = json.loads((folder / "trial-0" / "none" / "config.json").read_text())["settings"]
        assert f"lr={settings['lr']}" == calls[study]
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.db")] == [Path("sweep.db")]


def test_a_study_does_not_move_into_the_folder_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RECIPE, ["--output", str(tmp_path), "--epochs", "1"]) == 0
    assert sweep(tmp_path, "--search", "lr=1:2", "--study", "none") == 2
    assert "Found `none`" in capsys.readouterr().err


def test_machines_that_share_a_storage_number_their_trials_together(tmp_path: Path) -> None:
    flags = ("--search", "lr=0.1:0.2", "--storage", f"sqlite:///{tmp_path / 'shared.db'}", "--study", "a")
    assert sweep(tmp_path / "one", *flags, "--trials", "1") == 0
    assert sweep(tmp_path / "other", *flags, "--trials", "1") == 0
    assert [path.name for path in sorted(tmp_path.glob("o*/a/trial-*"))] == ["trial-0", "trial-1"]
    assert len(rows(tmp_path / "other" / "a")) == 2


def test_names_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "s [red] c"
    assert sweep(output, "--search", "device=cpu", "--trials", "1") == 0
    assert f"All trials: {output / 'sweep.csv'}" in capsys.readouterr().out
    (output / "trial-1").write_text("")
    assert sweep(output, "--search", "device=cpu", "--trials", "1") == 0
    assert "s [red] c/trial-1" in capsys.readouterr().out


def test_a_protocol_that_selects_on_test_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = attrs.evolve(RECIPE, protocols={"official": {"select": "test"}})
    assert main(recipe, ["sweep", "--output", str(tmp_path), "--search", "protocol=fair,official"]) == 2
    assert "Found `--select test`, given or of the protocol" in capsys.readouterr().err
