"""Tables of a comparison: on the screen, in Markdown, in LaTeX and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recipe_common.errors import RecipeError
from recipe_common.report.folder import write_text
from recipe_common.report.own_labels import TITLE as OWN_TITLE
from recipe_common.report.own_labels import own_rows, own_summary
from recipe_common.report.results import ALONE_NOTE, Outcome, Result, Run, failures_of, results_of
from recipe_common.report.summary import COSTS, Marks, Summary, cells, header
from recipe_common.report.view import Row
from recipe_common.tasks.task import Task

SCREEN = Marks(lambda text: f"[bold]{text}[/bold]", escape)
MARKDOWN = Marks(lambda text: f"**{text}**", lambda text: text.replace("|", r"\|"))
_LATEX_SPECIAL = {"\\": r"\textbackslash{}", "±": r"$\pm$", **{c: rf"\{c}" for c in "%_&#${}"}}
LATEX = Marks(lambda text: rf"\textbf{{{text}}}", lambda text: "".join(_LATEX_SPECIAL.get(c, c) for c in text))

COST_NOTE = (
    "time/step: with loading of its data, without what a method does between epochs; runs that share a machine slow "
    "each other. passes: forward passes of the encoders per epoch, those between epochs too, where 1 is once over the "
    "training data. memory: peak since the last start, of the device on CUDA, else of the process."
)
SEEDS_NOTE = (
    "mean ± standard deviation over seeds; difference of the first score to `none`, paired by seed: mean ± standard "
    "deviation, and the bootstrap 95 % interval of the mean (percentile, 10,000 resamples). Bold: best, none of its "
    "runs failed, and no interval overlaps with its own."
)


def notes(summary: Summary) -> list[str]:
    """Return the notes below the table: caption, explanation of the columns, failures."""
    failed = [
        f"FAILED: {failure.method}, seed {failure.seed}: {failure.reason}"
        for line in summary.lines
        for failure in line.failures
    ]
    return [*summary.caption.lines(), *([SEEDS_NOTE] if summary.num_seeds > 1 else []), COST_NOTE, *failed]


def print_summary(console: Console, summary: Summary) -> None:
    """Print the test scores of all methods side by side."""
    # The other metrics of several seeds would not fit; they are in the files.
    columns = summary.columns if summary.num_seeds == 1 else summary.narrow_columns
    rows = [header(summary, columns), *(cells(summary, line, columns, SCREEN) for line in summary.lines)]
    table = _table(rows)
    if console.measure(table).maximum > console.width:
        table = _table([row[: -len(COSTS)] for row in rows])
    console.print("\nTest split, scored with the weights of the best epoch", style="bold")
    console.print(table)
    _print_own(console, own_summary(summary))
    for note in notes(summary):
        console.print(note, style="dim", soft_wrap=True, markup=False)


def print_scores(console: Console, rows: Mapping[str, Row], modalities: Sequence[str], task: Task, title: str) -> None:
    """Print the scores of one checkpoint, one line per split."""
    titles = [*(metric.title for metric in task.metrics), *(f"{name} alone" for name in modalities)]
    table = _table([["split", "loss", *titles]])
    for split, row in rows.items():
        together = [metric.text(row[f"{split}_{metric.key}"]) for metric in task.metrics]
        key = f"{split}_{task.headline.key}"
        alone = [task.headline.text(row[f"{key}_{name}"]) for name in modalities]
        table.add_row(split, f"{row[f'{split}_loss']:.4f}", *together, *alone)
    console.print(f"\n{title}", style="bold", markup=False)
    console.print(table)
    _print_own(console, own_rows(rows, modalities, task))
    console.print(ALONE_NOTE, style="dim", soft_wrap=True)


def _print_own(console: Console, rows: Sequence[Sequence[str]]) -> None:
    if rows:
        console.print(f"\n{OWN_TITLE}", style="bold")
        console.print(_table([rows[0], *([escape(cell) for cell in row] for row in rows[1:])]))


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first row is its head; cells that are too long continue in the next line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def markdown(summary: Summary) -> str:
    """Return the table and its notes in Markdown."""
    rows = [header(summary, summary.columns)]
    rows += [cells(summary, line, summary.columns, MARKDOWN) for line in summary.lines]
    own = [[MARKDOWN.escape(cell) for cell in row] for row in own_summary(summary)]
    tables = [_in_markdown(rows), *([f"{OWN_TITLE}:", _in_markdown(own)] if own else [])]
    return "\n\n".join([*notes(summary), *tables]) + "\n"


def _in_markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---", *["---:"] * (len(head) - 1)], *others])


def latex(summary: Summary) -> str:
    """Return the table in LaTeX, for the package booktabs."""
    titles = [LATEX.escape(title) for title in header(summary, summary.columns)]
    rows = [" & ".join(cells(summary, line, summary.columns, LATEX)) + r" \\" for line in summary.lines]
    comments = [f"% {note}" for note in notes(summary)]
    body = [r"\toprule", " & ".join(titles) + r" \\", r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*comments, rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", *body, r"\end{tabular}", ""])


def numbers(outcomes: Sequence[Outcome]) -> str:
    """Return one CSV row per run: shares of 1, seconds and bytes; a failed run has its reason."""
    records = [_record(result) for result in results_of(outcomes)]
    records += [
        {"method": failure.method, "seed": failure.seed, "failure": failure.reason} for failure in failures_of(outcomes)
    ]
    columns = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def compared_runs(output: Path) -> set[Run]:
    """Return the runs in the table of the last comparison in ``output``; none without one.

    Raises:
        RecipeError: If the table is damaged.
    """
    table = output / "comparison.csv"
    if not table.is_file():
        return set()
    try:
        with table.open(newline="", encoding="utf-8") as file:
            return {Run(row["method"], int(row["seed"])) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RecipeError(
            f"Each row of {table} should have a method and a seed",
            found=f"that it cannot be read ({error})",
            fix="remove it; the command that trained, with `--resume`, writes it anew",
        ) from error


def _record(result: Result) -> dict[str, object]:
    return {
        "method": result.method,
        "seed": result.seed,
        **result.test,
        "best_epoch": result.best["epoch"],
        "seconds_per_step": result.seconds_per_step,
        "encoder_passes": result.encoder_passes,
        "waiting": result.waiting,
        "memory": result.memory,
    }


def write_tables(output: Path, summary: Summary, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write ``comparison.md`` for readers, ``comparison.tex`` for papers and ``comparison.csv`` for programs."""
    texts = {"md": markdown(summary), "tex": latex(summary), "csv": numbers(outcomes)}
    paths = []
    for ending, text in texts.items():
        path = output / f"comparison.{ending}"
        write_text(path, text)
        paths.append(path)
    return paths
