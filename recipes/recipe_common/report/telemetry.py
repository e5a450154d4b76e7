"""Telemetry of methods: statistics of the quantities that they logged, from TensorBoard events of a comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
from rich.console import Console
from rich.table import Table

from recipe_common.errors import RecipeError, require
from recipe_common.report.folder import SEED, RunFolder, write_text
from recipe_common.report.results import Run
from recipe_common.report.tables import compared_runs
from recipe_common.settings.command_line import parse
from recipe_common.settings.declaration import flag

COMMAND = "telemetry"
_DESCRIPTION = "Statistics of the quantities that the methods of finished or running runs have logged."


@attrs.frozen(kw_only=True)
class TelemetrySettings:
    """Folder and methods of the runs."""

    output: Path = flag(Path("runs"), metavar="DIR")
    methods: tuple[str, ...] | None = flag(None, "default: all with logged quantities", metavar="NAME")


@attrs.frozen
class Source:
    """The events of one run.

    Attributes:
        run: Method and seed.
        events: Folder of the event files.
    """

    run: Run
    events: Path

    @property
    def is_of_seeds(self) -> bool:
        """Whether it is one of the runs of `--seeds`."""
        return self.events.parent.name.startswith(SEED)


@attrs.frozen
class Quantity:
    """One quantity of one method, over all readings of all its runs.

    Attributes:
        method: Name of the method.
        name: Name of the quantity, such as ``coefficient/audio``.
        runs: Numbers of each run, in the order of its steps; those that are not finite are left out.
    """

    method: str
    name: str
    runs: tuple[tuple[float, ...], ...]

    def row(self) -> dict[str, str | int | float]:
        """Return three quantiles, the share of negative numbers, and the mean over runs of the last number."""
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
        RecipeError: If there are no runs, or none with logged quantities.
    """
    settings = parse(TelemetrySettings, None, _DESCRIPTION, arguments, {"output": Path("runs") / recipe})
    sources = find_sources(settings.output, recipe, settings.methods)
    chosen = choose(sources, compared_runs(settings.output))
    rows = [quantity.row() for quantity in read_telemetry(chosen)]
    if not rows:
        raise RecipeError(
            f"{settings.output} should hold runs of methods that log quantities",
            found="none",
            fix="give the `--output` of the training",
        )
    _write(settings.output / "telemetry.csv", rows)
    title = "quantiles and share of negative numbers: over all readings (looks) of all runs; last: mean over runs"
    table = Table(*rows[0], title=title, box=None)
    for row in rows:
        if not row["5 %"] == row["95 %"] == row["last"] == 0:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    if left_out := [str(source.events.parent) for source in sources if source not in chosen]:
        text = f"Left out, as they are not of the comparison of the others: {', '.join(left_out)}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def find_sources(output: Path, recipe: str, methods: Collection[str] | None = None) -> list[Source]:
    """Return the events of all runs under ``output``, or of those of some methods.

    Raises:
        RecipeError: If the ``config.json`` of a run is damaged.
    """
    found = []
    for events in sorted([*output.glob("*/events"), *output.glob(f"*/{SEED}*/events")]):
        config = RunFolder(events.parent, recipe, {}).read_config()
        settings = {} if config is None else config["settings"]
        if "method" in settings and (methods is None or settings["method"] in methods):
            found.append(Source(Run(settings["method"], settings.get("seed", 0)), events))
    return found


def choose(sources: Sequence[Source], compared: Collection[Run]) -> list[Source]:
    """Return the events of runs that belong together: of each method a single run, or those of several seeds.

    Args:
        sources: Events of all runs.
        compared: Runs of the last comparison; of methods that it does not have, all runs of several seeds are chosen if
            there are any.
    """
    by_method: dict[str, list[Source]] = {}
    for source in sources:
        by_method.setdefault(source.run.method, []).append(source)
    chosen = []
    for method, found in by_method.items():
        chosen += _of_one_kind(found, {run for run in compared if run.method == method})
    return chosen


def _of_one_kind(sources: Sequence[Source], compared: Collection[Run]) -> list[Source]:
    known = [source for source in sources if not compared or source.run in compared]
    of_seeds = [source for source in known if source.is_of_seeds]
    single = [source for source in known if not source.is_of_seeds]
    # The table has seeds, and no folders: if it has one seed of several that were trained, it is of a single run.
    is_single = len(compared) == 1 and len(of_seeds) < sum(source.is_of_seeds for source in sources)
    return single if single and (is_single or not of_seeds) else of_seeds


def read_telemetry(sources: Sequence[Source]) -> Iterator[Quantity]:
    """Read the quantities of each method, in alphabetical order."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for source in sources:
        method = source.run.method
        for name, values in _scalars(source.events, f"{method}/").items():
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
