"""Comparison of methods over seeds: trains all runs, and writes their tables, pictures and report page."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console

from recipe_common.comparison.children import run_in_processes
from recipe_common.comparison.locks import folder_lock
from recipe_common.comparison.plan import RunPlan, make_plan
from recipe_common.comparison.screen import Screen, make_screen
from recipe_common.files import room_for
from recipe_common.recipe import Recipe
from recipe_common.report.curves import Picture, score_figure, write_figure
from recipe_common.report.folder import write_text
from recipe_common.report.html import report_page
from recipe_common.report.results import ONLY, Failure, Outcome, results_of
from recipe_common.report.summary import Summary, summarize
from recipe_common.report.tables import compared_runs, print_summary, write_tables
from recipe_common.settings.declaration import changed
from recipe_common.settings.shared import Settings
from recipe_common.training.interrupt import Interrupted
from recipe_common.training.job import check_methods
from recipe_common.training.ranks import ALONE, Ranks
from recipe_common.training.run import Session, open_session, train, write_skipped
from recipe_common.training.trainer import RunFailed, reason


def compare(recipe: Recipe, settings: Settings[Any], console: Console, ranks: Ranks = ALONE) -> Summary:
    """Train all runs of the settings, and write their tables, pictures and report page.

    Args:
        recipe: The recipe.
        settings: All settings.
        console: Console for the output.
        ranks: Processes that train each run together; the first one writes.

    Returns:
        Results and failures: a run has failed if its loss was not finite or memory was short, and one of several runs
        if it raised any error.

    Raises:
        Interrupted: If a signal to stop has arrived.
        RecipeError: If nothing can be trained.
    """
    session = ranks.in_turn(lambda: open_session(recipe, settings, console, ranks))
    settings = session.settings
    plan = make_plan(session)
    options = {each.run.method: each.options for each in plan}
    check_methods(recipe, settings, session.data, session.precision, options)
    output, jobs = settings.run.output, settings.comparison.jobs
    with ExitStack() as stack:
        ranks.on_first(lambda: _prepare_folder(output, plan, settings, stack))
        ranks.on_first(lambda: write_skipped(session))
        if not settings.run.overwrite:
            session.print(*_no_longer_shown(output, plan))
        screen = make_screen(console, session, plan)
        outcomes = run_here(session, plan, screen) if jobs is None else run_in_processes(session, plan, screen)
        summary = summarize(outcomes, session.data.modalities, session.caption)
        files = ranks.on_first(lambda: write_report(output, summary, outcomes, plan, ranks))
        print_summary(console, summary)
    session.print("", "Written:", *(f"  {path}" for path in files))
    session.print(*(f"  {path}/" for path in dict.fromkeys(each.folder.path for each in plan)))
    return summary


def _prepare_folder(output: Path, plan: Sequence[RunPlan], settings: Settings[Any], stack: ExitStack) -> None:
    """Lock the output folder until ``stack`` is closed, and clear the folders of runs to be trained anew."""
    stack.enter_context(folder_lock(output))
    for each in [each for each in plan if each.must_be_cleared(settings)]:
        each.folder.clear()


def _no_longer_shown(output: Path, plan: Sequence[RunPlan]) -> list[str]:
    """Return a line if the tables in the folder have methods that the new tables will lack."""
    planned = list(dict.fromkeys(each.run.method for each in plan if not each.run.method.startswith(ONLY)))
    before = {run.method for run in compared_runs(output) if not run.method.startswith(ONLY)}
    gone = sorted(before - {*planned})
    if not gone:
        return []
    together = " ".join([*gone, *planned])
    return [f"  the tables of {output} lose {', '.join(gone)}; for all in one: --methods {together} --resume"]


def run_here(session: Session, plan: Sequence[RunPlan], screen: Screen) -> list[Outcome]:
    """Train the runs one after the other in this process."""
    outcomes: list[Outcome] = []
    with screen:
        for each in plan:
            outcome: Outcome
            try:
                own = session_of_seed(session, each.run.seed)
                outcome = train(own, each.run.method, each.options, each.folder, screen.view(each.run))
            except Interrupted:
                raise
            except Exception as error:
                if _ends_all(error, session, plan):
                    raise
                outcome = Failure(each.run.method, each.run.seed, reason(error))
                if session.ranks.is_first:
                    each.folder.write_log(traceback.format_exc())
            screen.finished(each.run, outcome)
            outcomes.append(outcome)
    return outcomes


def _ends_all(error: Exception, session: Session, plan: Sequence[RunPlan]) -> bool:
    """Return whether the error of a run ends the others. Several ranks fail together only if the loss is not finite."""
    if not session.ranks.is_alone:
        return not isinstance(error, RunFailed)
    return len(plan) == 1 and not isinstance(error, RunFailed | MemoryError | torch.OutOfMemoryError)


def session_of_seed(session: Session, seed: int) -> Session:
    """Return the session with another seed: its own augmentation, the same split."""
    if seed == session.settings.optimisation.seed:
        return session
    settings = changed(session.settings, seed=seed)
    data = session.ranks.in_turn(lambda: session.recipe.load(settings))
    return attrs.evolve(session, settings=settings, data=data)


def write_report(
    output: Path, summary: Summary, outcomes: Sequence[Outcome], plan: Sequence[RunPlan], ranks: Ranks = ALONE
) -> list[Path]:
    """Write tables, pictures and the page; return the files."""
    files = write_tables(output, summary, outcomes)
    if results_of(outcomes):
        with room_for(output):
            files += Picture(summary.histories, summary.modalities, summary.caption).save(output / "comparison.png")
            files += write_figure(score_figure(summary), output / "scores.png")
    found = {str(each.folder.path): each.folder.read_config() for each in plan}
    configs = {path: config for path, config in found.items() if config is not None}
    page = output / "report.html"
    write_text(page, report_page(summary, configs, shlex.join([*ranks.launcher, *sys.argv])))
    return [*files, page]
