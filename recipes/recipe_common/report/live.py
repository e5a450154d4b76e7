"""Live view of one run on a terminal: progress bars with the time left, and a table of epochs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from recipe_common.report.view import Columns, Row

_EPOCHS_SHOWN = 12
_SPEED_PERIOD = 600.0  # seconds: long enough to average over evaluations between the epochs


class LiveView:
    """View of one run after another with `rich.live`."""

    def __init__(self, console: Console, columns: Columns) -> None:
        self._console = console
        self._columns = columns

    def start(self, method: str, epochs: int, num_steps: int, step: int, history: Sequence[Row]) -> None:
        """Open the display."""
        self._method, self._epochs, self._num_steps = method, epochs, num_steps
        self._rows = list(history)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            speed_estimate_period=_SPEED_PERIOD,
        )
        done = len(history)
        self._all_steps = self._progress.add_task(
            f"{method}, all steps", total=epochs * num_steps, completed=done * num_steps + step, note=""
        )
        self._epoch_steps = self._add_epoch(step)
        self._live = Live(self._display(), console=self._console, refresh_per_second=4)
        self._live.start()

    def step_done(self) -> None:
        """Move both bars."""
        self._progress.advance(self._all_steps)
        self._progress.advance(self._epoch_steps)

    def loss_read(self, loss: float) -> None:
        """Show the loss beside the bar of the epoch."""
        self._progress.update(self._epoch_steps, note=f"loss {loss:.4f}")

    def epoch_done(self, row: Row) -> None:
        """Add a line to the table and begin a new bar."""
        self._rows.append(row)
        self._progress.remove_task(self._epoch_steps)
        if len(self._rows) < self._epochs:
            self._epoch_steps = self._add_epoch(0)
        self._live.update(self._display())

    def stop(self) -> None:
        """Close the display; its last state stays on the screen."""
        self._live.stop()

    def _add_epoch(self, step: int) -> TaskID:
        number = len(self._rows) + 1
        return self._progress.add_task(
            f"epoch {number} of {self._epochs}", total=self._num_steps, completed=step, note=""
        )

    def _display(self) -> Group:
        table = Table(title=self._method, title_style="bold", title_justify="left")
        for title in self._columns.header():
            table.add_column(title, justify="right")
        rank, split = self._columns.task.rank, self._columns.split
        best = max(self._rows, key=lambda row: rank(row, split), default=None)
        for row in self._rows[-_EPOCHS_SHOWN:]:
            table.add_row(*self._columns.cells(row), style="bold green" if row is best else "")
        return Group(table, self._progress)
