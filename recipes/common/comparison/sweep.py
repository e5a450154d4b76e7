"""A search over methods, options and flags, by Optuna: many machines may work on one study with a shared storage."""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from common.arguments import positive_int
from common.comparison.compare import compare
from common.errors import RecipeError, require
from common.recipe import Data, Recipe
from common.report.folder import write_text
from common.training.interrupt import INTERRUPTED, Interrupted
from common.training.settings import resolve

COMMAND = "sweep"
SAMPLERS = ("tpe", "random", "grid")
_CATEGORIES, _FLOAT, _INT, _LOG = "categories", "float", "int", "log"
_FIXED = frozenset(
    {
        *("search", "trials", "storage", "study", "sampler"),
        *("methods", "option", "select", "output", "resume", "update", "overwrite", "eval"),
    }
)
"""Flags that are the same for all trials, or have another name in a search."""


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

    @property
    def is_possible(self) -> bool:
        """Whether the two ends are in order; Optuna ends in a traceback otherwise."""
        if self.kind == _CATEGORIES:
            return True
        low, high = self.values
        return (0 if self.kind == _LOG else -math.inf) < low <= high < math.inf

    def suggest(self, trial: Any) -> Any:
        """Let Optuna choose a value.

        Raises:
            RecipeError: If the study has been searched with another kind of values, or with other categories.
        """
        try:
            return self._suggest(trial)
        except ValueError as error:
            raise RecipeError(
                f"Expected `--search {self.name}` as in the earlier trials of this study. Found a change: {error} "
                "Fix: another --study."
            ) from error

    def _suggest(self, trial: Any) -> Any:
        if self.kind == _CATEGORIES:
            return trial.suggest_categorical(self.name, self.values)
        low, high = self.values
        if self.kind == _INT:
            return trial.suggest_int(self.name, low, high)
        return trial.suggest_float(self.name, low, high, log=self.kind == _LOG)


def parse_space(text: str) -> Space:
    """Parse ``NAME=a,b,c`` (categories), ``NAME=low:high``, ``NAME=low:high:log`` or ``NAME=low:high:int``.

    Raises:
        RecipeError: If it is neither, or if `low` is above `high` or, with ``log``, not above 0.
    """
    space = _space(text)
    if space is None or not space.is_possible:
        raise RecipeError(
            "Expected `--search NAME=a,b,c`, NAME=low:high, NAME=low:high:log (both above 0) or NAME=low:high:int. "
            f"Found `{text}`. Fix: take one of these; NAME is a flag such as lr, `method`, or METHOD.OPTION."
        )
    return space


def _space(text: str) -> Space | None:
    name, _, right = text.partition("=")
    name = name.replace("-", "_")  # as flags are typed
    ends = right.split(":")
    try:
        if name and right and len(ends) == 1:
            return Space(name, _CATEGORIES, tuple(_literal(value) for value in right.split(",")))
        if name and len(ends) == 3 and ends[2] == _INT:
            return Space(name, _INT, (int(ends[0]), int(ends[1])))
        if name and len(ends) in (2, 3) and ends[2:] in ([], [_LOG]):
            return Space(name, _LOG if ends[2:] else _FLOAT, (float(ends[0]), float(ends[1])))
    except ValueError:
        pass  # the message of `parse_space` says what is expected
    return None


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
        0, 1 if no trial finished, or 130 if somebody asked to stop.

    Raises:
        RecipeError: If the flags do not describe a search, if the storage cannot be opened, or if no trial can start.
    """
    optuna = require("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it logs the traceback of a trial of which we say the reason
    given = parser.parse_args(arguments)
    search = [parse_space(text) for text in given.search]
    base = resolve(given, recipe)
    _check(base, search)
    trials = _Trials(recipe, parser, arguments)
    for space in search:
        trials.check(space)
    output = Path(base.output)
    output.mkdir(parents=True, exist_ok=True)
    metric = _metric(recipe, base)
    study = _open_study(optuna, recipe, given, output, "maximize" if metric.higher_is_better else "minimize")
    # A fixed seed would try again what earlier calls, or other machines, have tried.
    is_first = given.storage is None and not study.trials
    study.sampler = _sampler(optuna, given.sampler, search, base.seed if is_first else None)

    def objective(trial: Any) -> float:
        values = {space.name: space.suggest(trial) for space in search}
        return _train(recipe, trials.flags(values), output / f"trial-{trial.number}", console)

    try:
        study.optimize(objective, n_trials=given.trials, catch=(TrialFailed,))
    except Interrupted:
        _report(study, search, metric.title, output, console)
        console.print("Interrupted; the same command goes on with another trial.")
        return INTERRUPTED
    return _report(study, search, metric.title, output, console)


def _open_study(optuna: Any, recipe: Recipe, given: argparse.Namespace, output: Path, direction: str) -> Any:
    storage = given.storage or f"sqlite:///{output / 'sweep.db'}"
    try:
        return optuna.create_study(
            study_name=given.study or recipe.name, storage=storage, direction=direction, load_if_exists=True
        )
    except Exception as error:  # whatever the drivers of the databases raise
        reason = str(error).partition("\n")[0]
        raise RecipeError(
            f"Expected a database at {storage}. Found that it cannot be opened: {reason}. "
            "Fix: leave --storage out, or give a URL such as sqlite:///sweep.db"
        ) from error


class TrialFailed(Exception):
    """A trial without a score, or with that of some of its seeds only; the others go on."""


@attrs.frozen
class _Trials:
    """Makes the flags of a trial; its values go through the parser, as if they had been typed behind the others."""

    recipe: Recipe
    parser: argparse.ArgumentParser
    arguments: Sequence[str]

    def check(self, space: Space) -> None:
        """Refuse a value that its flag does not take now, not when its trial comes. Of a range, look at the ends."""
        for value in space.values:
            _check_select(resolve(self.flags({space.name: value}), self.recipe))

    def flags(self, values: Mapping[str, Any]) -> argparse.Namespace:
        """Return the parsed flags of a trial, not resolved."""
        typed = [_typed(name, value) for name, value in values.items()]
        self.parser.exit_on_error = False
        try:
            return self.parser.parse_args([*self.arguments, *typed])
        except argparse.ArgumentError as error:
            raise RecipeError(
                f"Expected `--search` to give each flag a value that it takes. Found `{' '.join(typed)}`: "
                f"{str(error).rstrip('.')}. "
                "Fix: a value that --help names; true or false for a switch."
            ) from error


def _typed(name: str, value: Any) -> str:
    if "." in name:
        return f"--option={name}={value}"
    flag = name.replace("_", "-")
    return {"true": f"--{flag}", "false": f"--no-{flag}"}.get(f"{value}".lower(), f"--{flag}={value}")


def _check_select(args: argparse.Namespace) -> None:
    if args.select != "val":
        raise RecipeError(
            f"Expected a sweep to choose by the validation split. Found `--select {args.select}`, given or of the "
            "protocol. Fix: leave it out."
        )


def _check(base: argparse.Namespace, search: Sequence[Space]) -> None:
    _check_select(base)
    if len(base.methods) > 1 or base.methods == ["all"]:
        raise RecipeError(
            f"Expected one method per trial. Found {' '.join(base.methods)}. "
            f"Fix: --search method={','.join(base.methods)}"
        )
    for space in search:
        is_flag = space.name in vars(base).keys() - _FIXED
        if "." not in space.name and space.name != "method" and not is_flag:
            raise RecipeError(
                f"Expected `--search` to name a flag of the training, `method` or METHOD.OPTION. Found `{space.name}`. "
                "Fix: a name of --help, such as batch-size."
            )


def _metric(recipe: Recipe, base: argparse.Namespace) -> Any:
    data: Data = recipe.load(base)
    return data.task.headline


def _sampler(optuna: Any, name: str, search: Sequence[Space], seed: int | None) -> Any:
    if name == "grid":
        if any(space.kind != _CATEGORIES for space in search):
            raise RecipeError(
                "Expected `--sampler grid` with categories only. Found a range. Fix: NAME=a,b,c, or another sampler."
            )
        return optuna.samplers.GridSampler({space.name: list(space.values) for space in search}, seed=seed)
    kind: Callable[..., Any] = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[name]
    return kind(seed=seed)


def _train(recipe: Recipe, flags: argparse.Namespace, output: Path, console: Console) -> float:
    flags.output, flags.overwrite = str(output), True
    method = (flags.methods or ["none"])[0]
    # Options of methods that this trial does not train are not for it.
    flags.option = [
        text for text in flags.option or [] if "." not in text.partition("=")[0] or text.startswith(f"{method}.")
    ]
    summary = compare(recipe, resolve(flags, recipe), console)
    key = f"val_{summary.caption.task.headline.key}"
    line = summary.lines[0]
    if line.failures:
        raise TrialFailed(line.failures[0].reason)
    results = line.results
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
