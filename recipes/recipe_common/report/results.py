"""Results of finished runs, reasons of failed ones, and the caption of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from recipe_common.tasks.task import Task

ALONE_NOTE = "A modality alone: the features of the others are zero where they enter the fusion."
ONLY = "only:"
"""Prefix of the name of a modality: a run that trains this modality by itself, its ceiling."""


@attrs.frozen
class Run:
    """One training of a comparison.

    Attributes:
        method: Name of the method, or ``only:<modality>``.
        seed: Seed of weights, order and augmentation.
    """

    method: str
    seed: int

    @property
    def folder(self) -> str:
        """The method as a folder name."""
        return self.method.replace(":", "-")


@attrs.frozen
class Result:
    """A finished run.

    Attributes:
        method: Name of the method, or ``only:<modality>``.
        seed: Seed of the run.
        best: Row of the epoch whose weights were kept.
        test: Scores of those weights on the test split, under ``test_...`` names.
        history: One row per epoch.
        memory: Peak memory in bytes: of the device on CUDA, else of the process; None where several runs share one.
    """

    method: str
    seed: int
    best: dict[str, float]
    test: dict[str, float]
    history: list[dict[str, float]]
    memory: float | None = None

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds of an optimizer step, loading of its data included."""
        return sum(row["seconds"] for row in self.history) / sum(row["steps"] for row in self.history)

    @property
    def encoder_passes(self) -> float:
        """Forward passes of the encoders in training, in units of one pass of every encoder over the training data."""
        return sum(row["encoder_passes"] for row in self.history) / len(self.history)

    @property
    def waiting(self) -> float:
        """Share of the time of training that was spent waiting for data."""
        return sum(row["waiting"] for row in self.history) / max(sum(row["seconds"] for row in self.history), 1e-9)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as values for JSON."""
        return attrs.asdict(self)


@attrs.frozen
class Failure:
    """A run that ended without a result.

    Attributes:
        method: See `Result`.
        seed: See `Result`.
        reason: Reason in one line.
    """

    method: str
    seed: int
    reason: str


Outcome = Result | Failure


@attrs.frozen
class Caption:
    """Caption of tables and pictures.

    Attributes:
        title: Title of the recipe.
        synthetic: Whether the data are synthetic.
        select: Split that selected the best epoch.
        protocol: Name of the protocol.
        task: Loss and metrics.
    """

    title: str
    synthetic: bool
    select: str
    protocol: str
    task: Task

    def lines(self) -> list[str]:
        """Return the caption as sentences."""
        lines = [self.title]
        if self.synthetic:
            lines.append("SYNTHETIC DATA: the numbers show that the code works, and have no meaning for real data.")
        if self.select == "test":
            lines.append("Best epoch selected on the TEST split, as the papers do: the test scores are optimistic.")
        else:
            lines.append("Best epoch selected on the validation split; test split evaluated once.")
        if self.protocol != "fair":
            lines.append(f"Protocol `{self.protocol}`: that of the paper's own code, not a fair comparison.")
        return [*lines, ALONE_NOTE]


def results_of(outcomes: Sequence[Outcome]) -> list[Result]:
    """Return the finished runs."""
    return [outcome for outcome in outcomes if isinstance(outcome, Result)]


def failures_of(outcomes: Sequence[Outcome]) -> list[Failure]:
    """Return the failed runs."""
    return [outcome for outcome in outcomes if isinstance(outcome, Failure)]
