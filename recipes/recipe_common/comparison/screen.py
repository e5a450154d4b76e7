"""Progress display of a comparison: one screen for all runs on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from recipe_common.comparison.plan import RunPlan
from recipe_common.report.live import LiveView
from recipe_common.report.results import Failure, Outcome, Result, Run
from recipe_common.report.view import Columns, PlainView, Row, View, duration
from recipe_common.training.run import Session

_LINES_AROUND = 12
"""Lines of the terminal that are kept free of runs."""


class Screen(Protocol):
    """Display of a comparison; a context that is open while runs are trained."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def view(self, run: Run) -> View:
        """Return the view for the trainer of a run."""

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Show the outcome of a run."""


def make_screen(console: Console, session: Session, plan: Sequence[RunPlan]) -> Screen:
    """Return a screen for all runs on a terminal, lines elsewhere; a single run has its own view."""
    columns = Columns(session.data.modalities, session.settings.data.select, session.data.task)
    runs = [each.run for each in plan]
    if not console.is_terminal:
        return Lines(console, columns, runs, at_once=session.settings.comparison.jobs or 1)
    if len(runs) == 1:
        return OneRun(console, columns)
    return LiveScreen(console, columns, runs)


class OneRun:
    """Screen of a single run, with its epochs."""

    def __init__(self, console: Console, columns: Columns) -> None:
        self._view = LiveView(console, columns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep the last state on the screen."""

    def view(self, run: Run) -> View:
        """Return the view."""
        return self._view

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Show nothing more."""


class Lines:
    """Lines for logs: the table of each run, or one line per epoch with the name of the run if several run at a time.

    Args:
        console: Console for the lines.
        columns: Numbers of an epoch.
        runs: All runs.
        at_once: Number of runs at a time.
    """

    def __init__(self, console: Console, columns: Columns, runs: Sequence[Run], at_once: int) -> None:
        self._console, self._columns, self._at_once = console, columns, at_once
        self._several = len({run.seed for run in runs}) > 1
        self._total, self._done = len(runs), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing."""

    def view(self, run: Run) -> View:
        """Return a view that prints lines."""
        if self._at_once == 1:
            return PlainView(self._console, self._columns, self._name(run))
        return NamedLines(self._console, self._columns, self._name(run))

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Print the outcome of a run, if there are several."""
        self._done += 1
        if self._total > 1:
            text = f"[{self._done}/{self._total}] {self._name(run)}: {_ending(outcome, self._columns)}"
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _name(self, run: Run) -> str:
        return f"{run.method}, seed {run.seed}" if self._several else run.method


class NamedLines:
    """View with one line per epoch, which begins with the name of the run."""

    def __init__(self, console: Console, columns: Columns, name: str) -> None:
        self._console, self._columns, self._name = console, columns, name
        self._epochs = 0

    def start(self, method: str, epochs: int, num_steps: int, step: int, history: Sequence[Row]) -> None:
        """Print that the run begins or continues."""
        self._epochs = epochs
        self._print(f"begins: {epochs} epochs of {num_steps} steps" + (f"; {len(history)} done" if history else ""))

    def step_done(self) -> None:
        """Print nothing."""

    def loss_read(self, loss: float) -> None:
        """Print nothing."""

    def epoch_done(self, row: Row) -> None:
        """Print the epoch."""
        pairs = zip(self._columns.header(), self._columns.cells(row), strict=True)
        self._print(", ".join(f"{title} {cell}" for title, cell in pairs if cell != "-"))

    def stop(self) -> None:
        """Print nothing."""

    def _print(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)


@attrs.define
class RunState:
    """Progress of a run: a view for its trainer, read by the screen.

    Attributes:
        run: Method and seed.
        columns: Numbers of an epoch.
        status: ``waiting``, ``running``, ``done`` or ``failed``.
        epochs: Epochs in all.
        num_steps: Steps of an epoch.
        steps: Steps done in all.
        rows: Epochs done.
        note: The last loss, or the outcome.
        started: Time of ``time.perf_counter`` at the start.
        steps_before: Steps done before the start.
    """

    run: Run
    columns: Columns
    status: str = "waiting"
    epochs: int = 0
    num_steps: int = 0
    steps: int = 0
    rows: list[Row] = attrs.field(factory=list)
    note: str = ""
    started: float = 0.0
    steps_before: int = 0

    def start(self, method: str, epochs: int, num_steps: int, step: int, history: Sequence[Row]) -> None:
        """Set the size of the run and the epochs that are done."""
        self.status, self.epochs, self.num_steps, self.rows = "running", epochs, num_steps, list(history)
        self.steps = self.steps_before = len(history) * num_steps + step
        self.started = time.perf_counter()

    def step_done(self) -> None:
        """Count a step."""
        self.steps += 1

    def loss_read(self, loss: float) -> None:
        """Note the mean loss of the epoch so far."""
        self.note = f"loss {loss:.4f}"

    def epoch_done(self, row: Row) -> None:
        """Add the row of an epoch."""
        self.rows.append(row)

    def stop(self) -> None:
        """Change nothing; `end` receives the outcome."""

    def end(self, outcome: Outcome) -> None:
        """Set the outcome of the run, which may be that of an earlier call."""
        if isinstance(outcome, Result) and self.status == "waiting":
            self.rows, self.epochs, self.num_steps = list(outcome.history), len(outcome.history), 1
            self.steps = self.steps_before = self.total
        self.status = "failed" if isinstance(outcome, Failure) else "done"
        self.note = _ending(outcome, self.columns)

    @property
    def total(self) -> int:
        """Steps in all; 0 before the start."""
        return self.epochs * self.num_steps

    @property
    def share(self) -> float:
        """Share of the steps that is done, in [0, 1]."""
        if self.status in ("done", "failed"):
            return 1.0
        return self.steps / self.total if self.total else 0.0

    @property
    def share_before(self) -> float:
        """Share of the steps that earlier calls of the command line have done, in [0, 1]."""
        return self.steps_before / self.total if self.total else 0.0

    @property
    def best(self) -> str:
        """Best score so far as text."""
        if not self.rows:
            return "-"
        task, split = self.columns.task, self.columns.split
        row = max(self.rows, key=lambda row: task.rank(row, split))
        return task.headline.text(row[f"{split}_{task.headline.key}"])

    @property
    def time_left(self) -> str:
        """Time left as text."""
        taken = self.steps - self.steps_before
        if self.status != "running" or taken == 0:
            return ""
        return duration((time.perf_counter() - self.started) / taken * (self.total - self.steps))


class LiveScreen:
    """Screen of all runs of a comparison: progress and best score of each, and the time left for all."""

    def __init__(self, console: Console, columns: Columns, runs: Sequence[Run]) -> None:
        self._console = console
        self.states = {run: RunState(run, columns) for run in runs}
        self._columns = columns
        self._started = time.perf_counter()
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def view(self, run: Run) -> View:
        """Return the state of a run, which is the view for its trainer."""
        return self.states[run]

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Show the outcome of a run."""
        self.states[run].end(outcome)

    def render(self) -> RenderableType:
        """Return the present content of the screen."""
        states = list(self.states.values())
        table = Table(box=None, pad_edge=False)
        for title in ("method", "seed", "", "epoch", f"best {self._columns.split}", "time left", ""):
            table.add_column(title, justify="right" if title in ("seed", "epoch", "time left") else "left")
        for state in self._shown(states):
            style = {"running": "bold", "failed": "red", "done": "green"}.get(state.status, "dim")
            bar = ProgressBar(total=max(state.total, 1), completed=state.steps, width=24)
            epoch = f"{len(state.rows)}/{state.epochs}" if state.epochs else ""
            cells = (state.run.method, f"{state.run.seed}", bar, epoch, state.best, state.time_left, state.note)
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), style=style)
        return Group(table, Text(self._counts(states), style="bold"))

    def _shown(self, states: Sequence[RunState]) -> list[RunState]:
        room = max(4, self._console.height - _LINES_AROUND)
        if len(states) <= room:
            return list(states)
        running = [state for state in states if state.status == "running"]
        ended = [state for state in states if state.status in ("done", "failed")]
        waiting = [state for state in states if state.status == "waiting"]
        before = max(room - len(running) - 2, 1)
        return [*ended[-before:], *running, *waiting[: max(room - len(running) - before, 0)]]

    def _counts(self, states: Sequence[RunState]) -> str:
        count = {name: sum(state.status == name for state in states) for name in ("done", "failed", "running")}
        text = f"{count['done']} of {len(states)} runs done, {count['running']} running"
        if count["failed"]:
            text += f", {count['failed']} failed"
        share = sum(state.share for state in states) / len(states)
        before = sum(state.share_before for state in states) / len(states)
        elapsed = time.perf_counter() - self._started
        left = duration(elapsed / (share - before) * (1 - share)) if share > before else "?"
        return f"{text}; {duration(elapsed)} passed, {left} left"


def _ending(outcome: Outcome, columns: Columns) -> str:
    if isinstance(outcome, Failure):
        return f"FAILED: {outcome.reason}"
    metric = columns.task.headline
    return f"test {metric.title} {metric.text(outcome.test[f'test_{metric.key}'])}"
