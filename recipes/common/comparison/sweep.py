"""A search over methods, options and flags, by Optuna: many machines may work on one study with a shared storage."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from common.comparison.compare import compare
from common.errors import RecipeError, require
from common.report.folder import write_text
from common.training.recipe import Data, Recipe
from common.training.settings import positive_int, resolve

COMMAND = "sweep"
SAMPLERS = ("tpe", "random", "grid")
_CATEGORIES, _FLOAT, _INT, _LOG = "categories", "float", "int", "log"


@attrs.frozen
class Space:
    """One dimension of the search.

    Attributes:
        name: A flag (``lr``), ``method``, or an option of a method (``ogm_ge.alpha``).
        kind: ``categories``, ``float``, ``int`` or ``log``.
        values: The categories, or the two ends.
    """

    name: str
    kind: str
    values: tuple[Any, ...]

    def suggest(self, trial: Any) -> Any:
        """Let Optuna choose a value."""
        if self.kind == _CATEGORIES:
            return trial.suggest_categorical(self.name, self.values)
        low, high = self.values
        if self.kind == _INT:
            return trial.suggest_int(self.name, low, high)
        return trial.suggest_float(self.name, low, high, log=self.kind == _LOG)


def parse_space(text: str) -> Space:
    """Parse ``NAME=a,b,c`` (categories), ``NAME=low:high``, ``NAME=low:high:log`` or ``NAME=low:high:int``.

    Raises:
        RecipeError: If it is neither.
    """
    name, _, right = text.partition("=")
    ends = right.split(":")
    try:
        if name and right and len(ends) == 1:
            return Space(name, _CATEGORIES, tuple(_literal(value) for value in right.split(",")))
        if name and len(ends) == 3 and ends[2] == _INT:
            return Space(name, _INT, (int(ends[0]), int(ends[1])))
        if name and len(ends) in (2, 3) and ends[2:] in ([], [_LOG]):
            return Space(name, _LOG if ends[2:] else _FLOAT, (float(ends[0]), float(ends[1])))
    except ValueError:
        pass  # the message below says what is expected
    raise RecipeError(
        f"Expected `--search NAME=a,b,c`, NAME=low:high, NAME=low:high:log or NAME=low:high:int. Found `{text}`. "
        "NAME is a flag such as lr, `method`, or METHOD.OPTION."
    )


def _literal(text: str) -> Any:
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return text


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a sweep; all flags of a training are fixed values for all trials."""
    add = parser.add_argument_group("sweep").add_argument
    add("--search", nargs="+", action="extend", required=True, metavar="NAME=VALUES", help="what is searched over")
    add("--trials", type=positive_int, default=20, help="trainings of this call; other calls may add to the study")
    add("--storage", metavar="URL", help="database that all machines share; default: sqlite in the output folder")
    add("--study", help="name of the study; default: the recipe's")
    add("--sampler", choices=SAMPLERS, default="tpe")


def sweep(recipe: Recipe, parser: argparse.ArgumentParser, arguments: Sequence[str], console: Console) -> int:
    """Run the trials; each is scored on the validation split, and none touches the choice with the test split.

    Returns:
        0, or 1 if no trial finished.
    """
    optuna = require("optuna")
    given = parser.parse_args(arguments)
    search = [parse_space(text) for text in given.search]
    base = resolve(given, recipe)
    _check(base, search)
    output = Path(base.output)
    output.mkdir(parents=True, exist_ok=True)
    metric = _metric(recipe, base)
    study = optuna.create_study(
        study_name=given.study or recipe.name,
        storage=given.storage or f"sqlite:///{output / 'sweep.db'}",
        sampler=_sampler(optuna, given.sampler, search, base.seed),
        direction="maximize" if metric.higher_is_better else "minimize",
        load_if_exists=True,
    )

    def objective(trial: Any) -> float:
        values = {space.name: space.suggest(trial) for space in search}
        return _train(recipe, given, values, output / f"trial-{trial.number}", console)

    study.optimize(objective, n_trials=given.trials, catch=(TrialFailed,))
    return _report(study, search, metric.title, output, console)


class TrialFailed(Exception):
    """A trial without a score; the others go on."""


def _check(base: argparse.Namespace, search: Sequence[Space]) -> None:
    if base.select != "val":
        raise RecipeError(
            "Expected a sweep to choose by the validation split. Found `--select test`. Fix: leave it out."
        )
    if len(base.methods) > 1 or base.methods == ["all"]:
        raise RecipeError(
            f"Expected one method per trial. Found {' '.join(base.methods)}. "
            f"Fix: --search method={','.join(base.methods)}"
        )
    for space in search:
        if "." not in space.name and space.name != "method" and not hasattr(base, space.name):
            raise RecipeError(f"Expected `--search` to name a flag, `method` or METHOD.OPTION. Found `{space.name}`.")


def _metric(recipe: Recipe, base: argparse.Namespace) -> Any:
    data: Data = recipe.load(base)
    return data.task.headline


def _sampler(optuna: Any, name: str, search: Sequence[Space], seed: int) -> Any:
    if name == "grid":
        if any(space.kind != _CATEGORIES for space in search):
            raise RecipeError("Expected `--sampler grid` with categories only, NAME=a,b,c. Found a range.")
        return optuna.samplers.GridSampler({space.name: list(space.values) for space in search}, seed=seed)
    kind: Callable[..., Any] = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[name]
    return kind(seed=seed)


def _train(recipe: Recipe, given: argparse.Namespace, values: dict[str, Any], output: Path, console: Console) -> float:
    flags = {**vars(given), "output": str(output), "overwrite": True}
    options = list(given.option or [])
    for name, value in values.items():
        if name == "method":
            flags["methods"] = [value]
        elif "." in name:
            options.append(f"{name}={value}")
        else:
            flags[name] = value
    method = (flags["methods"] or ["none"])[0]
    # Options of methods that this trial does not train are not for it.
    flags["option"] = [text for text in options if "." not in text.partition("=")[0] or text.startswith(f"{method}.")]
    summary = compare(recipe, resolve(argparse.Namespace(**flags), recipe), console)
    key = f"val_{summary.caption.task.headline.key}"
    results = summary.lines[0].results
    if not results:
        raise TrialFailed(summary.lines[0].failures[0].reason)
    return sum(result.best[key] for result in results) / len(results)


def _report(study: Any, search: Sequence[Space], title: str, output: Path, console: Console) -> int:
    trials = [trial for trial in study.trials if trial.value is not None]
    names = [space.name for space in search]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *names, f"val {title}"])
    for trial in trials:
        writer.writerow([trial.number, *(trial.params.get(name) for name in names), trial.value])
    write_text(output / "sweep.csv", text.getvalue())
    if not trials:
        console.print("No trial finished.", style="bold red")
        return 1
    table = Table("trial", *names, f"val {title}", title="Best trials")
    best_first = sorted(trials, key=lambda trial: trial.value, reverse=study.direction.name == "MAXIMIZE")
    for trial in best_first[:10]:
        table.add_row(f"{trial.number}", *(f"{trial.params.get(name)}" for name in names), f"{trial.value:.4f}")
    console.print(table)
    console.print(f"All trials: {output / 'sweep.csv'}", soft_wrap=True)
    return 0
