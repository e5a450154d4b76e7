"""`modbalance compare RUN...`: test scores of finished runs, side by side."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from modbalance._cli.command import DONE, Command, CommandError, Output, add_row, table
from modbalance.runs import SavedRun, find_runs

_BASELINE = "none"
_ALONE = "only:"
"""Begins the name of a modality that was trained by itself, which is no method."""
_ERROR = re.compile(r"_(loss|mae)(_|$)")
"""In the names of scores of which a lower value is better, of all modalities or of one, such as `test_mae_text`."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of runs")
    parser.add_argument(
        "--scores", nargs="+", metavar="NAME", help="scores to show, such as test_accuracy; default: all that fit"
    )


def _run(parsed: argparse.Namespace, output: Output) -> int:
    saved = find_runs(parsed.runs)
    recipes = sorted({run.config["recipe"] for run in saved})
    if len(recipes) > 1:
        raise CommandError(f"The runs should be of one recipe. Found {', '.join(recipes)}: compare each by itself.")
    scores = {run: found for run in saved if (found := run.test_scores()) is not None}
    unfinished = [str(run.path) for run in saved if run not in scores]
    if not scores:
        raise CommandError(
            f"`compare` should be given finished runs. Found {len(unfinished)} without result.json: finish them "
            "(`--resume`), or see their curves by `modbalance plot`."
        )
    names = _names(scores, parsed.scores)
    methods = _by_method(scores, names)
    best = _best(methods, names[0])
    output.json({"recipe": recipes[0], "methods": methods, "best": best, "unfinished": unfinished})
    if not output.as_json:
        hidden = _print(output, methods, names)
        if best is not None:
            output.note(_sentence(best, scores))
        output.note("mean ± standard deviation over seeds; in brackets the mean difference to `none`, paired by seed.")
        if hidden:
            output.show(f"Not shown at this width: {', '.join(hidden)}. Name them by --scores, or use --json.")
        output.show(
            *(f"Left out, as it is not finished: {path}" for path in unfinished),
        )
    return DONE


def _names(scores: dict[SavedRun, dict[str, float]], wanted: list[str] | None) -> list[str]:
    known = list(dict.fromkeys(name for each in scores.values() for name in each))
    if unknown := [name for name in wanted or [] if name not in known]:
        raise CommandError(
            f"`--scores` should name scores of the runs: {', '.join(known)}. Found {', '.join(unknown)}."
        )
    return wanted or [name for name in known if "_loss" not in name] or known


def _by_method(scores: dict[SavedRun, dict[str, float]], names: list[str]) -> list[dict[str, Any]]:
    by_method: dict[str, dict[int, dict[str, float]]] = {}
    for run, found in scores.items():
        seeds = by_method.setdefault(run.method, {})
        if run.seed in seeds:
            raise CommandError(
                f"There should be one run per method and seed. Found two of {run.method} with seed {run.seed}, such as "
                f"{run.path}: name the folders of one comparison."
            )
        seeds[run.seed] = found
    baseline = by_method.get(_BASELINE, {})
    return [
        {
            "method": method,
            "seeds": sorted(seeds),
            "scores": {name: _statistics(name, seeds, {} if method == _BASELINE else baseline) for name in names},
        }
        for method, seeds in sorted(by_method.items(), key=lambda each: (each[0] != _BASELINE, each[0]))
    ]


def _statistics(
    name: str, seeds: dict[int, dict[str, float]], baseline: dict[int, dict[str, float]]
) -> dict[str, float | None]:
    values = [found[name] for found in seeds.values() if name in found]
    pairs = [
        found[name] - baseline[seed][name]
        for seed, found in seeds.items()
        if name in found and name in baseline.get(seed, {})
    ]
    return {
        "mean": mean(values) if values else None,
        "std": stdev(values) if len(values) > 1 else None,
        "difference_to_none": mean(pairs) if pairs else None,
    }


def _best(methods: list[dict[str, Any]], score: str) -> dict[str, Any] | None:
    """Return the method whose mean is best; None if there are not two."""
    found = [
        {"method": each["method"], **each["scores"][score]}
        for each in methods
        if not each["method"].startswith(_ALONE) and each["scores"][score]["mean"] is not None
    ]
    if len(found) < 2:
        return None
    is_highest = _ERROR.search(score) is None
    best = (max if is_highest else min)(found, key=lambda each: each["mean"])
    kept = {name: best[name] for name in ("method", "mean", "difference_to_none")}
    return {"score": score, "is_highest": is_highest, **kept}


def _sentence(best: dict[str, Any], scores: dict[SavedRun, dict[str, float]]) -> str:
    """Name the best method, its difference to the baseline, and in how many seeds it is ahead."""
    score, sign = best["score"], 1 if best["is_highest"] else -1
    text = f"{'Highest' if best['is_highest'] else 'Lowest'} {score}: {best['method']}, {best['mean']:.3f}"
    if best["difference_to_none"] is None:
        return f"{text}."
    of = {method: _by_seed(scores, method, score) for method in (best["method"], _BASELINE)}
    pairs = [(value, of[_BASELINE][seed]) for seed, value in of[best["method"]].items() if seed in of[_BASELINE]]
    ahead = sum(sign * (value - baseline) > 0 for value, baseline in pairs)
    side = "above" if sign > 0 else "below"
    return (
        f"{text}, {best['difference_to_none']:+.3f} to `none`; {side} `none` in {ahead} of {len(pairs)} "
        f"seed{'s' if len(pairs) > 1 else ''}."
    )


def _by_seed(scores: dict[SavedRun, dict[str, float]], method: str, score: str) -> dict[int, float]:
    return {run.seed: found[score] for run, found in scores.items() if run.method == method and score in found}


def _print(output: Output, methods: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Print the table, and return the scores that do not fit."""
    shown = list(names)
    made = _table(methods, shown)
    # A measure is cut at the width that is given, so it is taken at a width that nothing reaches.
    unbounded = output.console.options.update_width(10_000)
    while len(shown) > 1 and output.console.measure(made, options=unbounded).maximum > output.console.width:
        shown.pop()
        made = _table(methods, shown)
    output.show(made)
    return names[len(shown) :]


def _table(methods: list[dict[str, Any]], names: list[str]) -> Any:
    made = table("method", "seeds", *names, numbers=range(1, 2 + len(names)))
    for each in methods:
        add_row(made, each["method"], str(len(each["seeds"])), *(_cell(each["scores"][name]) for name in names))
    return made


def _cell(found: dict[str, float | None]) -> str:
    if found["mean"] is None:
        return "-"
    spread = "" if found["std"] is None else f" ± {found['std']:.3f}"
    difference = "" if found["difference_to_none"] is None else f" ({found['difference_to_none']:+.3f})"
    return f"{found['mean']:.3f}{spread}{difference}"


COMMAND = Command("compare", "compare the test scores of finished runs", _add_arguments, _run)
