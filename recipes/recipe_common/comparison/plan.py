"""Plan of a comparison: its runs, with their options and folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from recipe_common.report.folder import RunFolder
from recipe_common.report.results import ONLY, Run
from recipe_common.settings.declaration import changed
from recipe_common.settings.shared import Settings
from recipe_common.training.run import Session, check_epochs
from recipe_common.training.settings import options_of


@attrs.frozen
class RunPlan:
    """One run, its options and its folder."""

    run: Run
    options: Mapping[str, Any]
    folder: RunFolder

    def must_be_cleared(self, settings: Settings[Any]) -> bool:
        """Return whether the files of an earlier run are to be deleted first.

        Raises:
            RecipeError: If the folder holds another run, or this one and ``settings`` neither continue nor delete it.
        """
        run = settings.run
        if self.folder.check(resume=run.resume, overwrite=run.overwrite, update=run.update):
            return True
        check_epochs(self.folder, settings.optimisation.epochs)
        return False


def make_plan(session: Session) -> list[RunPlan]:
    """Return all runs, seed by seed, so that an unfinished comparison has equally many runs of each method."""
    settings, first = session.settings, session.settings.optimisation.seed
    methods = list(settings.run.methods)
    if settings.comparison.ceilings:
        methods += [f"{ONLY}{modality}" for modality in session.data.modalities]
    plan = []
    for seed in range(first, first + (settings.comparison.seeds or 1)):
        own = attrs.evolve(session, settings=changed(settings, seed=seed))
        for method in methods:
            options = {} if method.startswith(ONLY) else options_of(method, settings, session.recipe)
            run = Run(method, seed)
            plan.append(RunPlan(run, options, own.folder(run, options)))
    return plan
