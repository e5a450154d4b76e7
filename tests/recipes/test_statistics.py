"""Numbers over seeds equal what one works out by hand, and claims are made only where intervals allow them."""

from __future__ import annotations

import io
import math

import attrs
import numpy as np
import pytest
from rich.console import Console

from recipe_common.report.results import Caption, Failure, Outcome, Result
from recipe_common.report.statistics import paired, spread
from recipe_common.report.summary import Summary, summarize
from recipe_common.report.tables import latex, markdown, numbers, print_summary
from recipe_common.tasks.task import Metric, Task, classification

CAPTION = Caption("Tiny", synthetic=False, select="val", protocol="fair", task=classification(3))


def test_spread_by_hand() -> None:
    found = spread([0.5, 0.7, 0.6])
    assert found.count == 3
    assert found.mean == pytest.approx(0.6)
    assert found.std == pytest.approx(0.1)
    assert found.low is not None
    assert found.high is not None
    assert 0.5 <= found.low < 0.6 < found.high <= 0.7


def test_the_interval_is_that_of_resampled_means() -> None:
    values = np.array([0.1, 0.4, 0.2, 0.9, 0.3])
    means = [np.mean(values[draw]) for draw in np.random.default_rng(5).integers(0, 5, (20_000, 5))]
    found = spread(list(values))
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    assert found == spread(list(values))


def test_one_value_has_no_spread_and_equal_ones_have_none() -> None:
    assert spread([0.5]).std is None
    assert spread([0.5]).overlaps(spread([0.9]))
    assert spread([0.5, 0.5]).high == 0.5
    assert not spread([0.5, 0.5]).overlaps(spread([0.9, 0.9]))


def test_differences_are_paired_by_seed() -> None:
    found = paired({0: 0.5, 1: 0.9, 7: 0.1}, {1: 0.8, 0: 0.4, 2: 0.0})
    assert found is not None
    assert found.count == 2
    assert found.mean == pytest.approx(0.1)
    assert found.std == pytest.approx(0.0, abs=1e-12)
    assert paired({0: 0.5}, {1: 0.5}) is None


def result(method: str, seed: int, accuracy: float) -> Result:
    test = dict.fromkeys(["test_macro_f1", "test_weighted_f1", "test_map"], 0.5)
    test |= {"test_accuracy": accuracy, "test_accuracy_audio": 0.4, "test_accuracy_visual": 0.3}
    row = {"epoch": 2, "seconds": 3.0, "steps": 6, "waiting": 1.5, "encoder_passes": 2.0}
    return Result(method, seed, row, test, [row, row], memory=3 * 2.0**20)


def table(outcomes: list[Outcome], caption: Caption = CAPTION) -> Summary:
    return summarize(outcomes, ("audio", "visual"), caption)


def runs(**scores: list[float]) -> list[Outcome]:
    return [
        result(method.replace("only_", "only:"), seed, value)
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]


def test_bold_only_where_no_interval_overlaps() -> None:
    clear = table(runs(none=[0.5, 0.51, 0.52], ogm=[0.7, 0.71, 0.72], dgl=[0.6, 0.61, 0.62]))
    assert clear.clear_winner() is clear.lines[1]
    assert "| **71.0 ± 1.0%** |" in markdown(clear)
    assert r"\textbf{71.0 $\pm$ 1.0\%}" in latex(clear)
    close = table(runs(none=[0.5, 0.51, 0.52], ogm=[0.6, 0.7, 0.8], dgl=[0.62, 0.66, 0.7]))
    assert close.clear_winner() is None
    assert "**" not in markdown(close)
    assert table(runs(none=[0.5], ogm=[0.9])).clear_winner() is None


def test_a_lower_error_wins() -> None:
    error = Metric("accuracy", "MAE", percent=False, higher_is_better=False)
    task = classification(3)
    caption = Caption("Tiny", False, "val", "fair", Task((error, *task.metrics[1:]), task.loss, task.meter))
    summary = table(runs(none=[0.5, 0.51], ogm=[0.7, 0.71]), caption)
    assert summary.clear_winner() is summary.lines[0]
    assert "| 0.705 ± 0.007 |" in markdown(summary)


def test_a_ceiling_is_no_contestant_and_has_no_parts() -> None:
    summary = table(runs(none=[0.5, 0.51], ogm=[0.7, 0.71], only_audio=[0.9, 0.91]))
    assert summary.clear_winner() is summary.lines[1]
    line = next(line for line in markdown(summary).splitlines() if line.startswith("| only:audio"))
    assert line.split("|")[3:9] == [" 90.5 ± 0.7% ", *[" 50.0 ± 0.0% "] * 3, " - ", " - "]


def test_gains_are_written_with_sign_and_interval() -> None:
    summary = table(runs(none=[0.5, 0.6], ogm=[0.55, 0.63]))
    assert "| +4.0 ± 1.4 [+3.0, +5.0] |" in markdown(summary)
    single = table(runs(none=[0.5], ogm=[0.55]))
    assert "vs none" not in markdown(single)


def test_a_difference_says_how_many_seeds_it_rests_on() -> None:
    missing: list[Outcome] = [Failure("none", seed, "killed") for seed in (1, 2)]
    text = markdown(table([*runs(none=[0.5]), *missing, *runs(ogm=[0.55, 0.9, 0.9])]))
    assert next(line for line in text.splitlines() if line.startswith("| ogm")).split("|")[9] == " +5.0 (seeds: 1) "
    apart: list[Outcome] = [result("none", 0, 0.5), result("dgl", 1, 0.5), result("dgl", 2, 0.5)]
    assert "| no shared seed |" in markdown(table(apart))


def test_a_method_of_which_runs_failed_is_not_bold() -> None:
    outcomes = runs(none=[0.5, 0.51, 0.52], ogm=[0.7, 0.71, 0.72])
    assert table(outcomes).clear_winner() is not None
    assert table([*outcomes, Failure("ogm", 3, "the loss became nan")]).clear_winner() is None


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_what_is_not_a_number_neither_wins_nor_lets_others_win(higher_is_better: bool) -> None:
    nan = float("nan")
    metric = Metric("accuracy", "score", higher_is_better=higher_is_better)
    task = attrs.evolve(classification(3), metrics=(metric, *classification(3).metrics[1:]))
    caption = Caption("Tiny", False, "val", "fair", task)

    assert table(runs(none=[nan, nan], ogm=[0.7, 0.71], dgl=[0.5, 0.51]), caption).clear_winner() is None
    rows = [{"val_accuracy": value, "val_loss": loss} for value, loss in ((nan, nan), (0.5, nan), (0.5, 1.0))]
    ranks = [task.rank(row, "val") for row in rows]
    assert ranks[0] < ranks[1] < ranks[2]


def test_a_narrow_screen_keeps_all_scores_and_leaves_out_costs() -> None:
    summary = table(runs(none=[0.5, 0.61], ogm=[0.55, 0.63]))
    shown = {}
    for width in (160, 80, 40):
        console = Console(width=width, file=io.StringIO())
        print_summary(console, summary)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        shown[width] = text.partition("Tiny")[0]
    assert "memory" in shown[160]
    assert "memory" not in shown[80] + shown[40]
    assert not any("\N{HORIZONTAL ELLIPSIS}" in text for text in shown.values())
    digits = {width: sorted(character for character in text if character.isdigit()) for width, text in shown.items()}
    assert digits[40] == digits[80]
    assert all(cell in shown[160] for cell in ("55.5 ± 7.8%", "59.0 ± 5.7%", "[+2.0, +5.0]"))
    assert len(digits[80]) > 40


def test_costs_and_failures_have_their_place() -> None:
    outcomes: list[Outcome] = [result("none", 0, 0.5), Failure("agm", 0, "the loss became nan"), result("agm", 1, 0.4)]
    outcomes.append(Failure("dgl", 0, "out of memory | 3 GB"))
    summary = table(outcomes)
    text = markdown(summary)
    assert "500 ms | 2.00 | 3 MiB |" in text
    assert "FAILED: agm, seed 0: the loss became nan" in text
    assert next(line for line in text.splitlines() if line.startswith("| dgl")).split("|")[2:4] == [" 0 ", " failed "]
    csv = numbers(outcomes).splitlines()
    assert csv[0].startswith("method,seed,test_macro_f1")
    assert csv[-1].endswith("out of memory | 3 GB")
    assert len(csv) == 5


def test_a_method_that_never_finished_does_not_break_the_table() -> None:
    summary = table([Failure("none", 0, "killed"), result("ogm", 0, 0.5), result("ogm", 1, 0.5)])
    assert summary.gain(summary.lines[1]) is None
    assert "failed" in markdown(summary)
    assert not math.isnan(summary.lines[1].cost(lambda r: r.memory) or math.nan)
