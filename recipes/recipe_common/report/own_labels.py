"""Tables of what each modality alone predicts, against the joint label and against the label of that modality.

Some datasets, such as CH-SIMS, have a label of what each modality alone expresses, beside that of all together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recipe_common.report.results import ONLY
from recipe_common.report.statistics import spread
from recipe_common.report.summary import Line, Summary, written
from recipe_common.report.view import Row
from recipe_common.tasks.task import Metric, Task

OWN = "own"
TITLE = "Each modality alone, against the joint label and against its own"
LABELS = ("joint", OWN)
"""The two labels that predictions are compared with."""


def own_name(modality: str) -> str:
    """Return the name of a modality in columns of scores against its own label."""
    return f"{modality}_{OWN}"


def has_own(row: Mapping[str, float], split: str, modality: str, task: Task) -> bool:
    """Return whether a row of scores has those of a modality against its own label."""
    return f"{split}_{task.headline.key}_{own_name(modality)}" in row


def own_rows(rows: Mapping[str, Row], modalities: Sequence[str], task: Task) -> list[list[str]]:
    """Return a table of the scores of one checkpoint by split, its head first; nothing without own labels."""
    found = []
    for split, row in rows.items():
        for modality in modalities:
            if has_own(row, split, modality, task):
                for label, name in zip(LABELS, (modality, own_name(modality)), strict=True):
                    scores = [metric.text(row[f"{split}_{metric.key}_{name}"]) for metric in task.metrics]
                    found.append([split, modality, label, *scores])
    return [["split", "modality", "label", *(metric.title for metric in task.metrics)], *found] if found else []


def _written(line: Line, key: str, metric: Metric) -> str:
    """Return a score over seeds as text; "-" where no result has it, as those of versions with fewer metrics."""
    values = list(line.scores(key).values())
    return written(spread(values), metric) if values else "-"


def own_summary(summary: Summary) -> list[list[str]]:
    """Return a table of the test scores of a comparison, its head first; nothing without own labels."""
    task, found = summary.caption.task, []
    for line in summary.lines:
        if not line.results:
            continue
        for modality in summary.modalities:
            is_trained = not line.method.startswith(ONLY) or line.method == f"{ONLY}{modality}"
            if not is_trained or not all(has_own(each.test, "test", modality, task) for each in line.results):
                continue
            for label, name in zip(LABELS, (modality, own_name(modality)), strict=True):
                scores = [_written(line, f"test_{metric.key}_{name}", metric) for metric in task.metrics]
                found.append([line.method, modality, label, *scores])
    return [["method", "modality", "label", *(metric.title for metric in task.metrics)], *found] if found else []
