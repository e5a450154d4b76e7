"""Training of one method from data to result, and evaluation of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console

from recipe_common.errors import RecipeError
from recipe_common.files import room_for
from recipe_common.recipe import Data, Recipe
from recipe_common.report.curves import Picture
from recipe_common.report.folder import SEED, RunFolder, write_text
from recipe_common.report.results import Caption, Result, Run
from recipe_common.report.tables import print_scores
from recipe_common.report.view import View
from recipe_common.settings.declaration import changed
from recipe_common.settings.shared import Settings
from recipe_common.training import checkpoint
from recipe_common.training.interrupt import stop_on_signal
from recipe_common.training.job import Job, build_evaluator, build_job, build_model, build_predicted
from recipe_common.training.loaders import build_loaders
from recipe_common.training.precision import Precision, describe_device, peak_memory, reset_peak_memory, set_up
from recipe_common.training.ranks import ALONE, Ranks
from recipe_common.training.settings import as_json, choose_methods, excluded_methods, identity
from recipe_common.training.suitability import unsuited_methods
from recipe_common.training.trainer import Trainer, check_loss

SKIPPED = "skipped.txt"
_SHOWN = 10
_RUN_SETTINGS = ("epochs", "workers", "jobs", "save_every")
"""Settings of the last call that trained a run, which `config.json` has beside those that identify the run."""


@attrs.frozen
class Session:
    """State that all runs of one call of the command line share.

    Attributes:
        recipe: The recipe.
        settings: All settings.
        data: The data, read once.
        precision: Device and number format.
        console: Console for the output.
        ranks: Processes that train each run together.
        is_child: Whether this process trains one run of a comparison for a parent process.
    """

    recipe: Recipe
    settings: Settings[Any]
    data: Data
    precision: Precision
    console: Console
    ranks: Ranks = ALONE
    is_child: bool = False

    @property
    def caption(self) -> Caption:
        """Title, protocol and task, for tables and pictures."""
        settings = self.settings.data
        return Caption(self.recipe.title, self.data.synthetic, settings.select, settings.protocol, self.data.task)

    @property
    def is_alone(self) -> bool:
        """Whether this process trains a single run."""
        comparison = self.settings.comparison
        is_one = len(self.settings.run.methods) == 1 and comparison.seeds is None and not comparison.ceilings
        return self.is_child or is_one

    def folder(self, run: Run, options: Mapping[str, Any]) -> RunFolder:
        """Return the folder of one run: ``OUTPUT/METHOD``, with several seeds ``OUTPUT/METHOD/seed-SEED``."""
        path = self.settings.run.output / run.folder
        if self.settings.comparison.seeds is not None:
            path /= f"{SEED}{run.seed}"
        return RunFolder(path, self.recipe.name, identity(self.settings, run.method, options))

    def print(self, *lines: str) -> None:
        """Print lines to the console as they are."""
        for line in lines:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def open_session(recipe: Recipe, settings: Settings[Any], console: Console, ranks: Ranks = ALONE) -> Session:
    """Set up the device, read the data, and print a summary of both.

    Raises:
        RecipeError: If a setting does not fit the machine or the data, or if a split is empty.
    """
    precision = set_up(settings.machine, ranks)
    data = recipe.load(settings)
    _check_splits(data, settings)
    lines = [recipe.title]
    if data.synthetic:
        lines.append("SYNTHETIC DATA: no --data-root given; a small synthetic set shows that everything works.")
    lines += [*data.summary, *_skipped(data, settings), f"device: {describe_device(precision)}"]
    if not ranks.is_alone:
        lines.append(
            f"processes: {ranks.size}, with {settings.optimisation.batch_size // ranks.size} samples of each batch"
        )
    methods, left_out = choose_methods(settings.run.methods, excluded_methods(settings, data))
    complete = changed(settings, methods=methods, **data.chosen)
    if "all" in settings.run.methods:
        unsuited = unsuited_methods(recipe, complete, data, methods)
        left_out += [f"left out: {name}: {reason}" for name, reason in unsuited.items()]
        complete = changed(complete, methods=tuple(name for name in methods if name not in unsuited))
    session = Session(recipe, complete, data, precision, console, ranks)
    session.print(*lines, *left_out)
    return session


def _check_splits(data: Data, settings: Settings[Any]) -> None:
    for name in ("train", "val", "test") if settings.data.validation else ("train", "test"):
        if len(getattr(data, name)) == 0:
            raise RecipeError(
                "Every split should have samples",
                found=f"none in {name} ({'; '.join(data.summary)})",
                fix="complete the lists and the files of that split",
            )


def _skipped(data: Data, settings: Settings[Any]) -> list[str]:
    """Return a line with the number of absent or unreadable samples, and the file of `write_skipped`."""
    if not data.skipped:
        return []
    if settings.data.strict:
        shown = "; ".join(data.skipped[:_SHOWN])
        raise RecipeError(
            "Every listed sample should be there and readable with `--strict`",
            found=f"{len(data.skipped):,} that are not ({shown}{'; ...' if len(data.skipped) > _SHOWN else ''})",
            fix="complete the data, or leave `--strict` out",
        )
    where = "" if settings.run.eval is not None else f"; their list: {settings.run.output / SKIPPED}"
    return [f"{len(data.skipped):,} listed samples are absent or unreadable and left out{where}"]


def write_skipped(session: Session) -> None:
    """Write the list of absent or unreadable samples to the output folder."""
    if session.data.skipped:
        write_text(session.settings.run.output / SKIPPED, "\n".join(session.data.skipped) + "\n")


def train(session: Session, method: str, options: Mapping[str, Any], folder: RunFolder, view: View) -> Result:
    """Train one method, or continue its training, and evaluate its best epoch once on the test split.

    Raises:
        Interrupted: If a signal to stop has arrived.
        RunFailed: If training has diverged.
    """
    settings, ranks = session.settings, session.ranks
    if (finished := ranks.on_first(lambda: finished_result(folder, settings.optimisation.epochs))) is not None:
        session.print(f"{method}: {folder.path} is finished; nothing to train.")
        return finished
    resumed = ranks.on_first(lambda: _saved_state(session, folder))
    values = as_json(settings)
    own = {name: values[name] for name in _RUN_SETTINGS}
    ranks.on_first(lambda: folder.claim({**own, "device": describe_device(session.precision)}))
    reset_peak_memory(session.precision.device)
    job = build_job(session.recipe, settings, session.data, session.precision, method, options, ranks)
    trainer = Trainer(job, folder, view)
    session.print(_description(job))
    if resumed is not None:
        trainer.restore(resumed)
        session.print(f"going on at epoch {trainer.epoch + 1}, step {trainer.step_in_epoch + 1}")
    with stop_on_signal() as stop:
        trainer.fit(stop)
        memory = peak_memory(session.precision.device, session.is_alone)
    result = ranks.on_first(lambda: _tested(trainer, memory))
    check_loss(result.test["test_loss"], "test loss", f"with the weights of epoch {result.best['epoch']}")
    ranks.on_first(lambda: folder.write_result(result.as_json()))
    if ranks.is_first:
        with room_for(folder.curves):
            Picture({method: [result.history]}, session.data.modalities, session.caption).save(folder.curves)
    return result


def finished_result(folder: RunFolder, epochs: int) -> Result | None:
    """Return the stored result of a run, if it was trained for ``epochs`` epochs."""
    content = folder.read_result()
    return Result(**content) if content is not None and len(content["history"]) == epochs else None


def _saved_state(session: Session, folder: RunFolder) -> dict[str, Any] | None:
    if not folder.last.exists():
        return None
    state = checkpoint.load(folder.last, checkpoint.STATE)
    check_epochs(folder, session.settings.optimisation.epochs)
    if state["best"] is not None:
        checkpoint.load(folder.best)  # its absence should fail now, not after all epochs
    return state


def check_epochs(folder: RunFolder, wanted: int) -> None:
    """Check the number of epochs of a run that is to be continued.

    Raises:
        RecipeError: If it has more than ``wanted`` epochs.
    """
    done = folder.epochs_done()
    if done > wanted:
        raise RecipeError(
            f"The run in {folder.path} should have at most {wanted} epochs, the value of `--epochs`",
            found=f"{done}",
            fix=f"write `--epochs {done}`, or choose another `--output`",
        )


def _tested(trainer: Trainer, memory: float | None) -> Result:
    job = trainer.job
    best = checkpoint.load(trainer.folder.best)
    job.model.load_state_dict(best["model"])
    scores = job.evaluator(job.loaders.test, job.settings.data.limit_batches)
    return Result(
        job.method, job.settings.optimisation.seed, dict(best["row"]), scores.as_row("test"), trainer.history, memory
    )


def _description(job: Job) -> str:
    parameters = sum(parameter.numel() for parameter in job.model.parameters())
    return f"model: {type(job.model).__name__}, {parameters / 1e6:.1f} M parameters; method: {job.method}"


def evaluate_checkpoint(session: Session, path: Path, state: Mapping[str, Any]) -> None:
    """Print the scores of a checkpoint on the validation and test splits.

    Raises:
        RecipeError: If the checkpoint was trained for other classes or another model.
    """
    settings, data = session.settings, session.data
    if list(data.classes) != state["classes"]:
        raise RecipeError(
            f"The data should have the classes of {path}, {state['classes']}",
            found=f"{list(data.classes)}",
            fix="evaluate it with the data that it was trained on",
        )
    model = build_model(session.recipe, settings, data, session.precision, state["settings"]["method"])
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"{path} should have weights for the model of these flags",
            found=f"others ({reason[:300].rstrip('.')})",
            fix="leave out the flags that change the model; those of the training are in the checkpoint",
        ) from error
    trained = state["settings"]
    predicted = build_predicted(session.recipe, settings, data, model, trained["method"], trained["options"])
    evaluator = build_evaluator(session.recipe, settings, data, model, session.precision, predicted)
    loaders = build_loaders(settings, data, session.precision)
    splits = {"val": loaders.val, "test": loaders.test} if settings.data.validation else {"test": loaders.test}
    rows = {name: evaluator(loader, settings.data.limit_batches).as_row(name) for name, loader in splits.items()}
    print_scores(session.console, rows, data.modalities, data.task, str(path))
