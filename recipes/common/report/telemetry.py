"""What methods reported of themselves while they trained, from the TensorBoard events of a comparison's runs."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
from rich.console import Console
from rich.table import Table

from common.errors import RecipeError, require
from common.report.folder import RunFolder, write_text

COMMAND = "telemetry"


@attrs.frozen
class Quantity:
    """One quantity of one method, over all looks of all its runs.

    Attributes:
        method: Name of the method.
        name: Name of the quantity, such as ``coefficient/audio``.
        runs: What each run reported, in the order of its steps; numbers that are not finite are left out.
    """

    method: str
    name: str
    runs: tuple[tuple[float, ...], ...]

    def row(self) -> dict[str, str | int | float]:
        """Summarize: three quantiles, the share of negative numbers, and the mean over runs of the last number."""
        values = np.concatenate(self.runs)
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        last = np.mean([run[-1] for run in self.runs])
        return {
            "method": self.method,
            "quantity": self.name,
            "looks": sum(map(len, self.runs)),
            "5 %": float(low),
            "median": float(middle),
            "95 %": float(high),
            "negative": float(np.mean(values < 0)),
            "last": float(last),
        }


def telemetry(recipe: str, arguments: Sequence[str], console: Console) -> int:
    """Run the command: print a line per quantity that was not always 0, and write all to ``telemetry.csv``.

    Raises:
        RecipeError: If there are no runs, or none that reported anything.
    """
    parser = argparse.ArgumentParser(description="What the methods of finished or running runs report of themselves.")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("runs") / recipe)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: all that report something")
    args = parser.parse_args(arguments)
    rows = [quantity.row() for quantity in read_telemetry(args.output, recipe, args.methods)]
    if not rows:
        raise RecipeError(
            f"Expected runs of methods that report something in {args.output}. Found none. "
            "Fix: `--output` as it was in training."
        )
    _write(args.output / "telemetry.csv", rows)
    title = "quantiles and share of negative numbers: of all looks of all runs; last: mean over runs"
    table = Table(*rows[0], title=title, box=None)
    for row in rows:
        if not row["5 %"] == row["95 %"] == row["last"] == 0:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    return 0


def read_telemetry(output: Path, recipe: str, methods: Sequence[str] | None = None) -> Iterator[Quantity]:
    """Read the quantities of each method under ``output``, in alphabetical order."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for events in sorted([*output.glob("*/events"), *output.glob("*/seed-*/events")]):
        config = RunFolder(events.parent, recipe, {}).read_config() or {}
        method = config.get("settings", {}).get("method")
        if method is None or (methods is not None and method not in methods):
            continue
        for name, values in _scalars(events, f"{method}/").items():
            found.setdefault((method, name), []).append(values)
    for (method, name), runs in sorted(found.items()):
        yield Quantity(method, name, tuple(runs))


def _scalars(events: Path, prefix: str) -> dict[str, tuple[float, ...]]:
    accumulator = require("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
        str(events), size_guidance={"scalars": 0}
    )
    accumulator.Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if tag.startswith(prefix)]
    values = {tag: [each.value for each in accumulator.Scalars(tag)] for tag in tags}
    finite = {tag: tuple(value for value in each if np.isfinite(value)) for tag, each in values.items()}
    return {tag.removeprefix(prefix): each for tag, each in finite.items() if each}


def _write(path: Path, rows: Sequence[dict[str, str | int | float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
