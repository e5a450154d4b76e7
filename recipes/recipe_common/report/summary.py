"""Summary of a comparison: one row per method, with means over seeds, differences to the baseline, and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs

from recipe_common.report.results import ONLY, Caption, Failure, Outcome, Result, failures_of, results_of
from recipe_common.report.statistics import Spread, paired, spread
from recipe_common.tasks.task import Metric, larger_if_number

BASELINE = "none"
COSTS = ("best epoch", "time/step", "passes", "memory")
"""Titles of the last columns."""


@attrs.frozen
class Column:
    """Scores of one kind, as a column of the table.

    Attributes:
        key: Name in the ``test`` scores of a result.
        title: Title of the column.
        metric: Metric of the scores, with their format and direction.
    """

    key: str
    title: str
    metric: Metric


@attrs.frozen
class Line:
    """One method, as a row of the table.

    Attributes:
        method: Name of the method.
        results: Its finished runs, by rising seed.
        failures: Its failed runs.
    """

    method: str
    results: tuple[Result, ...]
    failures: tuple[Failure, ...]

    def scores(self, key: str) -> dict[int, float]:
        """Return one test score by seed."""
        return {result.seed: result.test[key] for result in self.results if key in result.test}

    def cost(self, number: Callable[[Result], float | None]) -> float | None:
        """Return the mean of a cost over the runs; None where it was not measured."""
        values = [value for value in map(number, self.results) if value is not None]
        return sum(values) / len(values) if values else None


@attrs.frozen
class Summary:
    """A whole comparison.

    Attributes:
        lines: One per method, in the order of the command line.
        modalities: Names of the modalities.
        caption: Title, protocol and task.
    """

    lines: tuple[Line, ...]
    modalities: tuple[str, ...]
    caption: Caption

    @property
    def columns(self) -> tuple[Column, ...]:
        """The scores: every metric of the fused model, then the headline of each modality alone."""
        task = self.caption.task
        together = [Column(f"test_{metric.key}", metric.title, metric) for metric in task.metrics]
        key = f"test_{task.headline.key}"
        alone = [Column(f"{key}_{name}", f"{name} alone", task.headline) for name in self.modalities]
        return (*together, *alone)

    @property
    def narrow_columns(self) -> tuple[Column, ...]:
        """The headline of the fused model and of each modality alone."""
        return (self.columns[0], *self.columns[len(self.caption.task.metrics) :])

    @property
    def num_seeds(self) -> int:
        """Largest number of runs of one method."""
        return max((len(line.results) + len(line.failures) for line in self.lines), default=0)

    @property
    def histories(self) -> dict[str, list[list[dict[str, float]]]]:
        """Rows per epoch of the finished runs of each method."""
        return {line.method: [result.history for result in line.results] for line in self.lines if line.results}

    def spread(self, line: Line, column: Column) -> Spread | None:
        """Summarize one score of one method over its seeds; None without a finished run."""
        if line.method.startswith(ONLY) and column.key.endswith(tuple(f"_{name}" for name in self.modalities)):
            return None  # its other modalities were never trained, and its own is the fused score
        values = list(line.scores(column.key).values())
        return spread(values) if values else None

    @property
    def baseline(self) -> Line | None:
        """The method to which the others are compared, if it was trained."""
        return next((line for line in self.lines if line.method == BASELINE), None)

    def gain(self, line: Line) -> Spread | None:
        """Summarize the paired differences of the headline to the baseline; None for the baseline itself."""
        if self.baseline is None or line is self.baseline:
            return None
        key = self.columns[0].key
        return paired(line.scores(key), self.baseline.scores(key))

    def clear_winner(self) -> Line | None:
        """Return the method whose headline is best, if its interval overlaps with that of no other method.

        Models of a single modality are left out, and a method with failed runs is never the best.
        """
        column = self.columns[0]
        known = [
            (line, found)
            for line in self.lines
            if not line.method.startswith(ONLY) and (found := self.spread(line, column)) is not None
        ]
        if len(known) < 2:
            return None
        sign = 1 if column.metric.higher_is_better else -1
        best, found = max(known, key=lambda pair: larger_if_number(sign * pair[1].mean))
        if best.failures:
            return None
        return best if not any(found.overlaps(other) for line, other in known if line is not best) else None


def summarize(outcomes: Sequence[Outcome], modalities: tuple[str, ...], caption: Caption) -> Summary:
    """Group runs by method, in the order of their first appearance."""
    methods = list(dict.fromkeys(outcome.method for outcome in outcomes))
    lines = []
    for method in methods:
        own = [outcome for outcome in outcomes if outcome.method == method]
        results = sorted(results_of(own), key=lambda result: result.seed)
        lines.append(Line(method, tuple(results), tuple(failures_of(own))))
    return Summary(tuple(lines), modalities, caption)


@attrs.frozen
class Marks:
    """Markup of a kind of text, such as Markdown.

    Attributes:
        bold: Returns a cell in bold.
        escape: Returns plain text with its special characters escaped.
    """

    bold: Callable[[str], str]
    escape: Callable[[str], str]


def written(found: Spread, metric: Metric) -> str:
    """Return mean and standard deviation as text: ``61.9%``, ``61.9 ± 0.8%``, ``0.747 ± 0.012``."""
    if found.std is None:
        return metric.text(found.mean)
    scale, digits, unit = (100, 1, "%") if metric.percent else (1, 3, "")
    return f"{scale * found.mean:.{digits}f} ± {scale * found.std:.{digits}f}{unit}"


def header(summary: Summary, columns: Sequence[Column]) -> list[str]:
    """Return the titles of `cells`."""
    titles = [column.title for column in columns]
    if summary.num_seeds > 1:
        titles = ["seeds", *titles, f"vs {BASELINE}, paired [95 % interval]"]
    return ["method", *titles, *COSTS]


def cells(summary: Summary, line: Line, columns: Sequence[Column], marks: Marks) -> list[str]:
    """Return one method as text, below the titles of `header`."""
    several = summary.num_seeds > 1
    scores = list(_scores(summary, line, columns, marks))
    epochs = [result.best["epoch"] for result in line.results]
    row = [marks.escape(line.method), *([f"{len(line.results)}"] if several else []), *scores]
    if several:
        row.append(_gain(summary, line, marks))
    return [*row, _range(epochs), *_costs(line)]


def _scores(summary: Summary, line: Line, columns: Sequence[Column], marks: Marks) -> Iterator[str]:
    winner = summary.clear_winner()
    for number, column in enumerate(columns):
        found = summary.spread(line, column)
        if found is None:
            yield "failed" if number == 0 and line.failures else "-"
            continue
        text = marks.escape(written(found, column.metric))
        yield marks.bold(text) if number == 0 and line is winner else text


def _gain(summary: Summary, line: Line, marks: Marks) -> str:
    gain = summary.gain(line)
    if gain is None:
        return "no shared seed" if summary.baseline not in (None, line) and line.results else "-"
    metric = summary.columns[0].metric
    scale, digits = (100, 1) if metric.percent else (1, 3)
    text = f"{scale * gain.mean:+.{digits}f}"
    if gain.std is not None and gain.low is not None and gain.high is not None:
        text += f" ± {scale * gain.std:.{digits}f} [{scale * gain.low:+.{digits}f}, {scale * gain.high:+.{digits}f}]"
    if gain.count != summary.num_seeds:
        text += f" (seeds: {gain.count})"
    return marks.escape(text)


def _range(epochs: Sequence[float]) -> str:
    ends = sorted({min(epochs), max(epochs)}) if epochs else []
    return "-".join(f"{epoch:.0f}" for epoch in ends) or "-"


def _costs(line: Line) -> list[str]:
    seconds = line.cost(lambda result: result.seconds_per_step)
    passes = line.cost(lambda result: result.encoder_passes)
    memory = line.cost(lambda result: result.memory)
    return [
        "-" if seconds is None else f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s",
        "-" if passes is None else f"{passes:.2f}",
        "-" if memory is None else f"{memory / 2**20:,.0f} MiB",
    ]
