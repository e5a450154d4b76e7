"""Views of a run in training: the interface that the trainer calls, and lines for logs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
from rich.console import Console

from recipe_common.tasks.task import Task

Row = Mapping[str, float]


class View(Protocol):
    """Display of the progress of a run; the trainer calls it. No method may read from the device."""

    def start(self, method: str, epochs: int, num_steps: int, step: int, history: Sequence[Row]) -> None:
        """Show the start of a run, or its continuation after ``history`` and ``step`` steps of the next epoch."""

    def step_done(self) -> None:
        """Count an optimizer step."""

    def loss_read(self, loss: float) -> None:
        """Show the mean loss of the epoch so far."""

    def epoch_done(self, row: Row) -> None:
        """Show the row of an epoch that is trained and evaluated."""

    def stop(self) -> None:
        """End the display of a run that is finished or interrupted."""


@attrs.frozen
class Columns:
    """Numbers of an epoch that are shown, and their format.

    Attributes:
        modalities: Names of the modalities.
        split: Split that is evaluated after each epoch.
        task: Loss and metrics.
    """

    modalities: tuple[str, ...]
    split: str
    task: Task

    def header(self) -> list[str]:
        """Return the titles."""
        scores = [f"{self.split} {name}" for name in ("fused", *self.modalities)]
        return ["epoch", "loss", *scores, *(f"k {name}" for name in self.modalities), "time"]

    def cells(self, row: Row) -> list[str]:
        """Return the numbers of one epoch as text; a dash where there is no coefficient."""
        metric = self.task.headline
        key = f"{self.split}_{metric.key}"
        scores = [row[key], *(row[f"{key}_{name}"] for name in self.modalities)]
        coefficients = [row.get(f"coefficient_{name}") for name in self.modalities]
        return [
            f"{row['epoch']}",
            f"{row['train_loss']:.4f}",
            *(metric.text(value) for value in scores),
            *("-" if value is None else f"{value:.3f}" for value in coefficients),
            duration(row["seconds"]),
        ]


def duration(seconds: float) -> str:
    """Format a duration: ``8.4 s``, ``2:05`` or ``1:02:05``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainView:
    """View with one aligned line per epoch, for logs and pipes."""

    def __init__(self, console: Console, columns: Columns, name: str | None = None) -> None:
        self._console = console
        self._columns = columns
        self._name = name
        self._widths = [max(len(title), 8) for title in columns.header()]

    def start(self, method: str, epochs: int, num_steps: int, step: int, history: Sequence[Row]) -> None:
        """Print the titles, and the epochs done before an interruption."""
        self._epochs = epochs
        self._done_before = len(history)
        self._started = time.perf_counter()
        self._print(f"\n{self._name or method}: {epochs} epochs of {num_steps} steps")
        self._print(self._align([*self._columns.header(), "time left"]))
        for row in history:
            self._print(self._align(self._columns.cells(row)))

    def step_done(self) -> None:
        """Print nothing."""

    def loss_read(self, loss: float) -> None:
        """Print nothing."""

    def epoch_done(self, row: Row) -> None:
        """Print the line of the epoch, with the time left."""
        done = int(row["epoch"])
        per_epoch = (time.perf_counter() - self._started) / (done - self._done_before)
        left = duration(per_epoch * (self._epochs - done))
        self._print(self._align([*self._columns.cells(row), left]))

    def stop(self) -> None:
        """Print nothing."""

    def _align(self, cells: list[str]) -> str:
        widths = [*self._widths, len("time left")][: len(cells)]
        return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
