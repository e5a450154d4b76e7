"""Runs: train one method, train several side by side, evaluate a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console

from common.errors import RecipeError
from common.report.curves import Picture
from common.report.folder import RunFolder, write_text
from common.report.live import make_view
from common.report.results import Caption, Result, print_results, print_scores, write_comparison
from common.report.view import Columns, View
from common.training import checkpoint
from common.training.interrupt import stop_on_signal
from common.training.job import Job, build_evaluator, build_job, build_model, check_methods
from common.training.loaders import build_loaders
from common.training.precision import Precision, describe_device, set_up
from common.training.recipe import Data, Recipe
from common.training.settings import choose_methods, identity, options_of
from common.training.trainer import Trainer

_SHOWN = 10
_RUN_SETTINGS = ("epochs", "workers", "device", "save_every")


@attrs.frozen
class Session:
    """One call of the command line: what all its runs share.

    Attributes:
        recipe: The recipe.
        args: Resolved flags.
        data: The data, read once.
        precision: Device and number format.
        console: Where a person reads.
    """

    recipe: Recipe
    args: argparse.Namespace
    data: Data
    precision: Precision
    console: Console

    @property
    def caption(self) -> Caption:
        """What a reader of the numbers must know."""
        return Caption(self.recipe.title, self.data.generated, self.args.select, self.args.protocol, self.data.task)

    def folder(self, method: str, options: Mapping[str, Any]) -> RunFolder:
        """Return the folder of one run."""
        return RunFolder(Path(self.args.output) / method, self.recipe.name, identity(self.args, method, options))


def open_session(recipe: Recipe, args: argparse.Namespace, console: Console) -> Session:
    """Read the data and say what is about to happen."""
    precision = set_up(args)
    data = recipe.load(args)
    _check_splits(data, args)
    lines = [recipe.title]
    if data.generated:
        lines.append("GENERATED DATA: no --data-root given; a small made-up set shows that everything works.")
    lines += [*data.summary, *_report_skipped(data, args), f"device: {describe_device(precision)}"]
    args.methods, left_out = choose_methods(args.methods, _excluded(data, args))
    _print_lines(console, lines + left_out)
    return Session(recipe, args, data, precision, console)


def _check_splits(data: Data, args: argparse.Namespace) -> None:
    for name in ("train", "val", "test") if args.validation else ("train", "test"):
        if len(getattr(data, name)) == 0:
            raise RecipeError(f"Expected samples in every split. Found none in {name}: {'; '.join(data.summary)}.")


def _report_skipped(data: Data, args: argparse.Namespace) -> list[str]:
    """Write the list of what is absent or unreadable, and say where it is."""
    if not data.skipped:
        return []
    if args.strict:
        shown = "\n  ".join(data.skipped[:_SHOWN])
        raise RecipeError(
            f"Expected every listed sample, as --strict says. Found {len(data.skipped):,} absent or unreadable:\n  "
            f"{shown}\nFix: complete the data, or leave --strict out."
        )
    path = Path(args.output) / "skipped.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(data.skipped) + "\n")
    return [f"{len(data.skipped):,} listed samples are absent or unreadable and left out; their list: {path}"]


def _excluded(data: Data, args: argparse.Namespace) -> dict[str, str]:
    if args.validation:
        return dict(data.excluded)
    return {"relearning": "it compares training with validation data, and --no-validation leaves none", **data.excluded}


def compare(session: Session) -> None:
    """Train every method of the session, then show them side by side.

    Raises:
        Interrupted: If somebody asked to stop.
    """
    args = session.args
    options = {method: options_of(method, args, session.recipe) for method in args.methods}
    check_methods(session.recipe, args, session.data, session.precision, options)
    folders = {method: session.folder(method, options[method]) for method in args.methods}
    for folder in folders.values():
        folder.check(resume=args.resume, overwrite=args.overwrite)
    view = make_view(session.console, Columns(session.data.modalities, args.select, session.data.task))
    results = [train(session, method, options[method], folders[method], view) for method in args.methods]
    print_results(session.console, results, session.data.modalities, session.caption)
    files = write_comparison(Path(args.output), results, session.data.modalities, session.caption)
    picture = Path(args.output) / "comparison.png"
    histories = {result.method: result.history for result in results}
    Picture(histories, session.data.modalities, session.caption).save(picture)
    _print_lines(session.console, ["", "Written:", *(f"  {path}" for path in [*files, picture])])
    _print_lines(session.console, [f"  {folder.path}/" for folder in folders.values()])


def train(session: Session, method: str, options: Mapping[str, Any], folder: RunFolder, view: View) -> Result:
    """Train one method, or go on with it, and evaluate its best epoch once on the test split."""
    args = session.args
    resumed = _saved_state(session, folder)
    if resumed is not None and len(resumed["history"]) == args.epochs and (finished := folder.read_result()):
        _print_lines(session.console, [f"{method}: {folder.path} is finished; nothing to train."])
        return Result(**finished)
    folder.claim({name: getattr(args, name) for name in _RUN_SETTINGS}, overwrite=args.overwrite)
    job = build_job(session.recipe, args, session.data, session.precision, method, options)
    trainer = Trainer(job, folder, view)
    _describe(session.console, job)
    if resumed is not None:
        trainer.restore(resumed)
        _print_lines(session.console, [f"going on at epoch {trainer.epoch + 1}, step {trainer.step_in_epoch + 1}"])
    with stop_on_signal() as stop:
        trainer.fit(stop)
    result = _finish(trainer)
    Picture({method: result.history}, session.data.modalities, session.caption).save(folder.curves)
    return result


def _saved_state(session: Session, folder: RunFolder) -> dict[str, Any] | None:
    if not session.args.resume or not folder.last.exists():
        return None
    state = checkpoint.load(folder.last)
    done, wanted = len(state["history"]), session.args.epochs
    if done > wanted:
        raise RecipeError(
            f"{folder.path} holds {done} epochs already. Found `--epochs {wanted}`. Fix: another `--output`."
        )
    return state


def _finish(trainer: Trainer) -> Result:
    job = trainer.job
    best = checkpoint.load(trainer.folder.best)
    job.model.load_state_dict(best["model"])
    scores = job.evaluator(job.loaders.test, job.args.limit_batches)
    result = Result(job.method, dict(best["row"]), scores.as_row("test"), trainer.history)
    trainer.folder.write_result(result.as_json())
    return result


def _describe(console: Console, job: Job) -> None:
    parameters = sum(parameter.numel() for parameter in job.model.parameters())
    _print_lines(
        console, [f"model: {type(job.model).__name__}, {parameters / 1e6:.1f} M parameters; method: {job.method}"]
    )


def evaluate_checkpoint(session: Session, path: Path, state: Mapping[str, Any]) -> None:
    """Print the scores of a checkpoint on the validation and test splits.

    Raises:
        RecipeError: If the checkpoint was trained for other classes or another model.
    """
    args, data = session.args, session.data
    if list(data.classes) != state["classes"]:
        raise RecipeError(f"{path} was trained for the classes {state['classes']}. Found {list(data.classes)}.")
    model = build_model(session.recipe, args, data, session.precision)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise RecipeError(f"{path} does not fit the model of these flags: {error}") from error
    evaluator = build_evaluator(session.recipe, args, data, model, session.precision)
    loaders = build_loaders(args, data, session.precision)
    splits = {"val": loaders.val, "test": loaders.test} if args.validation else {"test": loaders.test}
    rows = {name: evaluator(loader, args.limit_batches).as_row(name) for name, loader in splits.items()}
    print_scores(session.console, rows, data.modalities, data.task, str(path))


def _print_lines(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
