"""`modbalance plot RUN...`: curves of runs over epochs, finished or not."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from modbalance._cli.command import DONE, Command, CommandError, Output
from modbalance.runs import SavedRun, find_runs

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8F6B00")
"""The palette of Okabe and Ito, which colour-blind readers can distinguish."""
_MOST = 6  # panels of a picture, unless columns are named
_PREFERRED = ("train_loss", "val_", "test_", "coefficient_")
_SUFFIXES = (".png", ".pdf", ".svg")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of runs")
    parser.add_argument("--columns", nargs="+", metavar="NAME", help="columns of metrics.csv, one panel for each")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="picture; default: curves.png")


def _run(parsed: argparse.Namespace, output: Output) -> int:
    path: Path = parsed.output
    if path.suffix not in _SUFFIXES or not path.parent.is_dir():
        raise CommandError(
            f"`--output` should be a file in an existing folder that ends in {', '.join(_SUFFIXES)}. Found {path}."
        )
    if find_spec("matplotlib") is None:
        raise CommandError("`plot` should find matplotlib. Found none: `pip install matplotlib`.")
    histories = {run: history for run in find_runs(parsed.runs) if (history := run.history())}
    if not histories:
        raise CommandError("`plot` should be given runs with epochs in metrics.csv. Found none: train an epoch first.")
    columns = _columns(list(histories.values()), parsed.columns)
    _draw(histories, columns).savefig(path)
    output.show(f"Wrote {path}: {', '.join(columns)}")
    output.json({"picture": str(path), "columns": columns, "runs": [str(run.path) for run in histories]})
    return DONE


def _columns(histories: list[list[dict[str, float]]], wanted: list[str] | None) -> list[str]:
    known = [name for name in dict.fromkeys(n for h in histories for row in h for n in row) if name != "epoch"]
    if unknown := [name for name in wanted or [] if name not in known]:
        raise CommandError(
            f"`--columns` should name columns of the runs: {', '.join(known)}. Found {', '.join(unknown)}."
        )
    order = [name for start in _PREFERRED for name in known if name.startswith(start) and not name.endswith("_loss")]
    first = [name for name in known if name == "train_loss"]
    return wanted or ([*first, *order] or known)[:_MOST]


def _draw(histories: dict[SavedRun, list[dict[str, float]]], columns: list[str]) -> Any:
    from matplotlib.figure import Figure

    wide = min(len(columns), 3)
    high = -(-len(columns) // wide)
    figure = Figure(figsize=(3.8 * wide, 2.8 * high + 0.6), layout="constrained", dpi=130)
    panels = figure.subplots(high, wide, squeeze=False).flatten()
    labels = [f"{run.method}, seed {run.seed}" for run in histories]
    handles: dict[str, Any] = {}
    for panel, column in zip(panels, columns, strict=False):
        for number, history in enumerate(histories.values()):
            rows = [(row.get("epoch", index), row[column]) for index, row in enumerate(history, 1) if column in row]
            epochs, values = [row[0] for row in rows], [row[1] for row in rows]
            style = "-" if number < len(_COLOURS) else "--"
            marker = "o" if len(rows) == 1 else None  # a line needs two points
            (line,) = panel.plot(epochs, values, style, color=_COLOURS[number % len(_COLOURS)], marker=marker)
            handles.setdefault(labels[number], line)
        panel.set_title(column, fontsize=10)
        panel.set_xlabel("epoch", fontsize=9)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(columns) :]:
        panel.set_visible(False)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)
    return figure


COMMAND = Command("plot", "draw the curves of runs over epochs", _add_arguments, _run)
