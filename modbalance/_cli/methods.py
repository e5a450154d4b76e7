"""`modbalance methods`: what is installed, where it comes from, what it touches and costs."""

from __future__ import annotations

import argparse
from typing import Any

import attrs
from rich.table import Table

from modbalance._cli.command import DONE, Command, Output, add_row, table
from modbalance._cli.facts import hooks, page, paper, summary, touches
from modbalance._measure import Cost, measure
from modbalance._plugins import Listing, list_methods
from modbalance.method import Method

_WIDE = 100
"""Narrower terminals get the summaries in a table of their own."""
_NOTE = (
    "passes: forward passes of the encoders per step (1: no method) + between epochs. ops: operations added to a step. "
    "reads: of tensors on the host, per step. Counted on a small model on the CPU; in full with --json."
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-cost", action="store_true", help="leave out the cost, which takes seconds to measure")


def _run(parsed: argparse.Namespace, output: Output) -> int:
    records = [_record(listing, costs=not parsed.no_cost) for listing in list_methods()]
    output.json({"methods": records})
    if output.as_json:
        return DONE
    rows = [["none", "Leaves the training as it is: the baseline.", "-", "1", "0", "0", "-"], *map(_cells, records)]
    titles = ["method", "what it does", "touches", "passes", "ops", "reads", "distribution"]
    columns = [0, 1, 2, 6] if parsed.no_cost else [*range(7)]
    if output.console.width < _WIDE:
        output.show(_table(titles, rows, [0, 1]))
        columns.remove(1)
    output.show(_table(titles, rows, columns))
    if not parsed.no_cost:
        output.note(_NOTE)
    return DONE


def _cells(record: dict[str, Any]) -> list[str]:
    what = record["summary"] if record["problem"] is None else f"unavailable: {record['problem']}"
    changed = ", ".join(record.get("touches", [])) or "-"
    origin = f"{record['distribution']} {record['version']}"
    return [record["name"], what, changed, *_cost_cells(record.get("cost")), origin]


def _table(titles: list[str], rows: list[list[str]], columns: list[int]) -> Table:
    made = table(*(titles[each] for each in columns), numbers=[columns.index(n) for n in (3, 4, 5) if n in columns])
    for row in rows:
        add_row(made, *(row[each] for each in columns))
    return made


def _record(listing: Listing, *, costs: bool) -> dict[str, Any]:
    method = listing.method
    record: dict[str, Any] = {
        "name": listing.name,
        "distribution": listing.distribution,
        "version": listing.version,
        "problem": listing.problem,
    }
    if method is None:
        return record
    record |= {
        "summary": summary(method),
        "paper": paper(method),
        "page": page(method),
        "needs": sorted(method.needs),
        "min_modalities": method.min_modalities,
        "hooks": hooks(method),
        "touches": touches(method),
    }
    return record | (cost_record(method) if costs else {})


def cost_record(method: type[Method]) -> dict[str, Any]:
    """Return the measured cost, or why it could not be measured, as values for JSON."""
    try:
        return {"cost": attrs.asdict(measure(method)), "cost_problem": None}
    except Exception as error:  # of a foreign method: the other rows are worth having
        return {"cost": None, "cost_problem": f"{type(error).__name__}: {error}"}


def _cost_cells(cost: dict[str, float] | None) -> list[str]:
    if cost is None:
        return ["?", "?", "?"]
    found = Cost(**cost)
    between = f" + {found.epoch_passes:.3g}" if found.epoch_passes else ""
    return [f"{found.encoder_passes:.3g}{between}", f"{found.operations_added:+.0f}", f"{found.host_reads:.3g}"]


COMMAND = Command("methods", "list the installed methods with source and cost", _add_arguments, _run, aliases=["list"])
