"""Errors of checks: a rule that is not kept, and the report on all of them."""

from __future__ import annotations

import textwrap
import traceback
from collections.abc import Mapping
from pathlib import Path

from modbalance.errors import ModbalanceError


class RuleError(ModbalanceError, AssertionError):
    """A rule is not kept: what was expected, what was found, and the fix."""

    def __init__(self, expected: str, found: str, fix: str) -> None:
        super().__init__(expected, found, fix)
        self.expected, self.found, self.fix = expected, found, fix

    def __str__(self) -> str:
        return f"expected: {self.expected}\nfound: {self.found}\nfix: {self.fix}"


class ConformanceError(ModbalanceError, AssertionError):
    """Rules that a method does not keep, each with what was expected, what was found, and the fix.

    Attributes:
        failures: The errors, by name of the rule.
    """

    def __init__(self, message: str, failures: Mapping[str, RuleError]) -> None:
        super().__init__(message)
        self.failures = dict(failures)


def report(method: str, failures: Mapping[str, tuple[str, RuleError]], total: int) -> ConformanceError:
    """Return one error for (summary of the rule, its error) by name of the rule."""
    lines = [f"{method} breaks {len(failures)} of {total} rules:"]
    for number, (name, (summary, error)) in enumerate(failures.items(), 1):
        lines += ["", f"{number}. {name}: {summary}", textwrap.indent(str(error), "   ")]
    return ConformanceError("\n".join(lines), {name: error for name, (_, error) in failures.items()})


def crash(error: Exception, summary: str) -> RuleError:
    """Return the error of a rule whose training ended by an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    where = "".join(f"\n  {Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in _own(frames)[-3:])
    return RuleError(
        f"a training without an error ({summary})",
        f"{type(error).__name__}: {error}{where}",
        "look at the traceback of the error that this one was raised from",
    )


def _own(frames: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """Return the frames outside of torch, pluggy and modbalance; all, where there are no others."""
    foreign = ("/torch/", "/pluggy/", f"{Path(__file__).parents[1]}/")
    return [frame for frame in frames if not any(part in frame.filename for part in foreign)] or list(frames)
