"""Finished runs side by side: on the screen, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from rich import box
from rich.console import Console
from rich.table import Table

from common.report.folder import write_text
from common.report.view import Row, duration

if TYPE_CHECKING:
    from common.training.tasks import Task

ALONE_NOTE = "A modality alone: the features of the others are zero where they enter the fusion."


@attrs.frozen
class Result:
    """A finished run.

    Attributes:
        method: Name of the method.
        best: Row of the epoch whose weights were kept.
        test: Scores of those weights on the test split, under ``test_...`` names.
        history: One row per epoch.
    """

    method: str
    best: dict[str, float]
    test: dict[str, float]
    history: list[dict[str, float]]

    @property
    def seconds_per_epoch(self) -> float:
        """Mean seconds of training per epoch, evaluation not counted."""
        return sum(row["seconds"] for row in self.history) / len(self.history)

    def as_json(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return attrs.asdict(self)


@attrs.frozen
class Caption:
    """What a reader of the numbers must know.

    Attributes:
        title: Title of the recipe.
        generated: Whether the data were generated.
        select: Split that selected the best epoch.
        protocol: Name of the protocol.
        task: What was trained and measured.
    """

    title: str
    generated: bool
    select: str
    protocol: str
    task: Task

    def lines(self) -> list[str]:
        """Return the caption as sentences."""
        lines = [self.title]
        if self.generated:
            lines.append("GENERATED DATA: the numbers show that the code works, and say nothing about real data.")
        if self.select == "test":
            lines.append("Best epoch selected on the TEST split, as the papers do: the test scores are optimistic.")
        else:
            lines.append("Best epoch selected on the validation split; test split evaluated once.")
        if self.protocol != "fair":
            lines.append(f"Protocol `{self.protocol}`: what the paper's own code does, not a fair comparison.")
        return [*lines, ALONE_NOTE]


def score_header(task: Task, modalities: Sequence[str]) -> list[str]:
    """Return the titles of `score_cells`."""
    return [*(metric.title for metric in task.metrics), *(f"{name} alone" for name in modalities)]


def score_cells(row: Row, split: str, task: Task, modalities: Sequence[str]) -> list[str]:
    """Return the scores of one evaluation as text."""
    together = [metric.text(row[f"{split}_{metric.key}"]) for metric in task.metrics]
    alone = [task.headline.text(row[f"{split}_{task.headline.key}_{name}"]) for name in modalities]
    return together + alone


def print_results(console: Console, results: Sequence[Result], modalities: Sequence[str], caption: Caption) -> None:
    """Print the test scores of all methods side by side."""
    table = _table("method", [*score_header(caption.task, modalities), "best epoch", "time/epoch"])
    for result in results:
        table.add_row(*_cells(result, caption.task, modalities))
    console.print("\nTest split, scored with the weights of the best epoch", style="bold")
    console.print(table)
    for line in caption.lines():
        console.print(line, style="dim", soft_wrap=True)


def print_scores(console: Console, rows: Mapping[str, Row], modalities: Sequence[str], task: Task, title: str) -> None:
    """Print the scores of one checkpoint, one line per split."""
    table = _table("split", ["loss", *score_header(task, modalities)])
    for split, row in rows.items():
        table.add_row(split, f"{row[f'{split}_loss']:.4f}", *score_cells(row, split, task, modalities))
    console.print(f"\n{title}", style="bold", markup=False)
    console.print(table)
    console.print(ALONE_NOTE, style="dim", soft_wrap=True)


def _table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for title in others:
        table.add_column(title, justify="right")
    return table


def write_comparison(
    output: Path, results: Sequence[Result], modalities: Sequence[str], caption: Caption
) -> list[Path]:
    """Write ``comparison.md`` for people and ``comparison.csv``, with shares of 1, for programs."""
    task = caption.task
    header = ["method", *score_header(task, modalities), "best epoch", "time/epoch"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *(_cells(result, task, modalities) for result in results)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    markdown, numbers = output / "comparison.md", output / "comparison.csv"
    write_text(markdown, "\n\n".join([*caption.lines(), table]) + "\n")
    text = io.StringIO()
    records = [
        {"method": r.method, **r.test, "best_epoch": r.best["epoch"], "seconds_per_epoch": r.seconds_per_epoch}
        for r in results
    ]
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(numbers, text.getvalue())
    return [markdown, numbers]


def _cells(result: Result, task: Task, modalities: Sequence[str]) -> list[str]:
    scores = score_cells(result.test, "test", task, modalities)
    return [result.method, *scores, f"{result.best['epoch']}", duration(result.seconds_per_epoch)]
