"""Hyper-parameter search with Optuna, over methods, options and flags; several machines may share one study."""

from __future__ import annotations

import argparse
import csv
import io
import traceback
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, ClassVar

import attrs
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modbalance import ModbalanceError
from recipe_common.arguments import positive_int
from recipe_common.comparison.compare import compare
from recipe_common.comparison.space import METHOD, Space, check_search, each_value, parse_space, typed
from recipe_common.errors import RecipeError, require
from recipe_common.recipe import Data, Recipe
from recipe_common.report.folder import LOG, write_text
from recipe_common.settings.command_line import read
from recipe_common.settings.declaration import build, changed, flag
from recipe_common.settings.shared import Settings
from recipe_common.training.interrupt import INTERRUPTED, Interrupted
from recipe_common.training.job import check_methods
from recipe_common.training.precision import Precision, set_up
from recipe_common.training.settings import choose_methods, excluded_methods, options_of, resolve
from recipe_common.training.trainer import reason

COMMAND = "sweep"
SAMPLERS = ("tpe", "random", "grid")
_TRIAL, _TABLE, _DATABASE = "trial-", "sweep.csv", "sweep.db"
_FAILURE = "failure"


@attrs.frozen(kw_only=True)
class SweepSettings:
    """Settings of the search; settings of the training are fixed for all trials."""

    title: ClassVar[str] = "sweep"

    search: tuple[str, ...] = flag(help="dimension of the search", metavar="NAME=VALUES", is_extended=True)
    trials: int = flag(20, "trainings of this call; other calls may add to the study", number=positive_int)
    storage: str | None = flag(
        None, "database that all machines share; default: sqlite in the output folder", metavar="URL"
    )
    study: str | None = flag(
        None, "name of the study, and of its folder in the output; default: that of the recipe, and no folder"
    )
    sampler: str = flag("tpe", choices=SAMPLERS)


def sweep(recipe: Recipe, parser: argparse.ArgumentParser, arguments: Sequence[str], console: Console) -> int:
    """Run the trials; each is scored on the validation split, and the test split has no influence on the search.

    Returns:
        Exit code: 0, 1 if no trial has a score, 130 after an interruption.

    Raises:
        RecipeError: If the flags do not describe a search, if the storage cannot be opened, or if no trial can start.
        modbalance.ModbalanceError: If a method is unknown or a value of its options is not valid.
    """
    optuna = require("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # else it logs tracebacks of trials, whose reasons are printed
    given = read(parser, arguments)
    own = build(SweepSettings, given)
    search = [parse_space(text) for text in own.search]
    trials = _Trials(recipe, parser, arguments)
    base = resolve(trials.of_training(given), recipe)
    folder = _folder(recipe, own.study, base.run.output)
    metric = _check(trials, base, search).task.headline
    direction = "maximize" if metric.higher_is_better else "minimize"
    study = _open_study(optuna, recipe, own, base.run.output, direction)
    # A fixed seed would repeat the trials of earlier calls, or of other machines.
    is_first = own.storage is None and not study.trials
    study.sampler = _sampler(optuna, own.sampler, search, base.optimisation.seed if is_first else None)

    def objective(trial: Any) -> float:
        try:
            values = {space.name: space.suggest(trial) for space in search}
            return _train(trials, values, folder / f"{_TRIAL}{trial.number}", console)
        except (Exception, KeyboardInterrupt) as error:
            trial.set_user_attr(_FAILURE, reason(error))
            raise

    is_interrupted = False
    try:
        study.optimize(objective, n_trials=own.trials, catch=(TrialFailed,))
    except Interrupted:
        is_interrupted = True
    finally:
        has_found = _report(study, search, metric.title, folder, console)
    if is_interrupted:
        console.print("Interrupted; the same command continues with another trial.")
        return INTERRUPTED
    return 0 if has_found else 1


def _folder(recipe: Recipe, study: str | None, output: Path) -> Path:
    """Return the folder of trials and table: one named after the study if that has another name than the recipe."""
    if not study or study == recipe.name:
        return output
    is_taken = study.startswith((".", _TRIAL, "sweep.")) or (output / study / "config.json").exists()
    if is_taken or Path(study).name != study:
        raise RecipeError(
            f"`--study` should name a folder for its trials in {output}",
            found=f"`{study}`, which is a path, hidden, or the name of something else there",
            fix="choose a plain name, such as wide-lr",
        )
    return output / study


def _open_study(optuna: Any, recipe: Recipe, own: SweepSettings, output: Path, direction: str) -> Any:
    output.mkdir(parents=True, exist_ok=True)
    storage = own.storage or f"sqlite:///{output / _DATABASE}"
    try:
        return optuna.create_study(
            study_name=own.study or recipe.name, storage=storage, direction=direction, load_if_exists=True
        )
    except Exception as error:  # drivers of databases raise errors of their own
        raise RecipeError(
            f"{storage} should be a database",
            found=f"that it cannot be opened ({reason(error).rstrip('.')})",
            fix="leave `--storage` out, or give a URL such as sqlite:///sweep.db",
        ) from error


class TrialFailed(Exception):
    """A trial has no score, or only scores of some of its seeds; the other trials continue."""


@attrs.frozen
class _Trials:
    """Settings of trials; the values of a trial are parsed as arguments behind those of the command line."""

    recipe: Recipe
    parser: argparse.ArgumentParser
    arguments: Sequence[str]

    def check(self, space: Space) -> None:
        """Check all values of a dimension, or both ends of a range, before the first trial.

        Raises:
            RecipeError: If a value is not valid for its flag.
        """
        for value in space.values:
            _check_select(self.settings({space.name: value}))

    def settings(self, values: Mapping[str, Any]) -> Settings[Any]:
        """Return the settings of a trial, with the options of its method alone."""
        settings = resolve(self.of_training(self.given(values)), self.recipe)
        own = (None, settings.run.methods[0])
        return changed(settings, option=tuple(each for each in settings.run.option if each.method in own))

    def of_training(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given values of settings of the training, without those of the sweep."""
        return {name: value for name, value in given.items() if name in self.recipe.flags}

    def given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the typed values of the flags of a trial."""
        given = [typed(name, value) for name, value in values.items() if name != METHOD]
        self.parser.exit_on_error = False
        try:
            read_values = read(self.parser, [*self.arguments, *given])
        except argparse.ArgumentError as error:
            raise RecipeError(
                "`--search` should give each flag a value that it accepts",
                found=f"`{' '.join(given)}` ({str(error).rstrip('.')})",
                fix="take a value from `--help`, true or false for a switch",
            ) from error
        if METHOD in values:
            read_values["methods"] = (f"{values[METHOD]}",)  # a second --methods might add to the first
        return read_values


def _check_select(settings: Settings[Any]) -> None:
    if settings.data.select != "val":
        raise RecipeError(
            "A sweep should choose by the validation split",
            found=f"`--select {settings.data.select}`, given or of the protocol",
            fix="leave it out",
        )


def _check(trials: _Trials, base: Settings[Any], search: Sequence[Space]) -> Data:
    """Check the settings of all trials before the first one; return the data, whose task has the score."""
    _check_select(base)
    methods = check_search(search, base)
    for space in search:
        trials.check(space)
    precision = set_up(base.machine)
    data = trials.recipe.load(base)
    choose_methods(methods, excluded_methods(base, data))
    for method in methods:
        for combinations in each_value([space for space in search if space.method == method]):
            _check_one_of(trials, method, combinations, data, precision)
    return data


def _check_one_of(
    trials: _Trials, method: str, combinations: Sequence[Mapping[str, Any]], data: Data, precision: Precision
) -> None:
    """Check that a method accepts one of several combinations of its options, which may bound each other."""
    refusals = []
    for values in combinations:
        settings = trials.settings({**values, METHOD: method})
        try:
            options = {method: options_of(method, settings, trials.recipe)}
            check_methods(trials.recipe, settings, data, precision, options)
        except ModbalanceError as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]


def _sampler(optuna: Any, name: str, search: Sequence[Space], seed: int | None) -> Any:
    if name == "grid":
        if not all(space.is_categorical for space in search):
            raise RecipeError(
                "`--sampler grid` should have categories only",
                found="a range",
                fix="write NAME=a,b,c, or choose another sampler",
            )
        return optuna.samplers.GridSampler({space.name: list(space.values) for space in search}, seed=seed)
    kind: Callable[..., Any] = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[name]
    return kind(seed=seed)


def _train(trials: _Trials, values: Mapping[str, Any], output: Path, console: Console) -> float:
    """Train one trial and return its score.

    Raises:
        Interrupted: If a signal to stop has arrived.
        TrialFailed: If any other error ends it.
    """
    try:
        settings = changed(trials.settings(values), output=output, overwrite=True)
        summary = compare(trials.recipe, settings, console)
    except Interrupted:
        raise
    except Exception as error:
        _print(console, f"{output.name} failed: {reason(error)} ({_log(output / LOG)})")
        raise TrialFailed(reason(error)) from error
    line = summary.lines[0]
    if line.failures:
        raise TrialFailed(line.failures[0].reason)
    key = f"val_{summary.caption.task.headline.key}"
    score = sum(result.best[key] for result in line.results) / len(line.results)
    if isnan(score):
        raise TrialFailed("its score is not a number")
    return score


def _log(path: Path) -> str:
    """Write the traceback of the current exception to a file; return its path, or why there is none, in words."""
    try:
        write_text(path, traceback.format_exc())
    except OSError as error:  # perhaps the reason of the failure itself; the other trials continue
        return f"no log: {error}"
    return f"all of it: {path}"


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _report(study: Any, search: Sequence[Space], title: str, folder: Path, console: Console) -> bool:
    """Write and print the table; return whether a trial has a score."""
    names = [space.name for space in search]
    trials = [trial for trial in study.trials if trial.state.is_finished()]
    _write_table(folder / _TABLE, trials, names, title)
    scored = [trial for trial in trials if trial.value is not None]
    if scored:
        best_first = sorted(scored, key=lambda trial: trial.value, reverse=study.direction.name == "MAXIMIZE")
        _print_best(console, best_first[:10], names, title)
    else:
        console.print("No trial finished.", style="bold red")
    _print(console, f"All trials: {folder / _TABLE}")
    return bool(scored)


def _write_table(path: Path, trials: Sequence[Any], names: Sequence[str], title: str) -> None:
    """Write one row per trial; a failed trial has a reason in place of a score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *names, f"val {title}", _FAILURE])
    for trial in trials:
        values = [trial.params.get(name) for name in names]
        writer.writerow([trial.number, *values, trial.value, trial.user_attrs.get(_FAILURE)])
    write_text(path, text.getvalue())


def _print_best(console: Console, trials: Sequence[Any], names: Sequence[str], title: str) -> None:
    table = Table("trial", *names, f"val {title}", title="Best trials")
    for trial in trials:
        values = [escape(f"{trial.params.get(name)}") for name in names]
        table.add_row(f"{trial.number}", *values, f"{trial.value:.4f}")
    console.print(table)
