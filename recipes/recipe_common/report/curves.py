"""Figures of runs: scores, training loss and coefficients over epochs, and bars of the test scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from recipe_common.report.results import ONLY, Caption
from recipe_common.report.summary import BASELINE, Summary
from recipe_common.report.view import Row

# The palette of Okabe and Ito, which colour-blind readers can distinguish; the baseline is grey.
_GREY = "#6e6e6e"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8F6B00")
_MARKERS = ("", "o", "s", "^", "D")
"""Markers of the first methods with these colours, of the next ones, and so on."""
_MARKS = 6  # on a line
_LINE_STYLES = ("-", "--", ":", "-.")
_SUFFIXES = (".png", ".pdf")
_MOST_BANDS = 4
"""More methods than this are drawn as means only; their ranges would cover each other."""
_LARGEST = 4.0
"""Limit of the axis of coefficients; a larger one would flatten the curves of all others."""
_DECADES = 20.0
"""Losses that differ by more than this factor are drawn on a logarithmic scale."""

History = Sequence[Row]


def colour(method: str, methods: Sequence[str]) -> str:
    """Return the colour of a method among others."""
    if method == BASELINE:
        return _GREY
    if method.startswith(ONLY):
        return "black"
    return _COLOURS[_place(method, methods) % len(_COLOURS)]


def marker(method: str, methods: Sequence[str]) -> str:
    """Return the marker of a method, which tells it from others of its colour; empty for none."""
    if method == BASELINE or method.startswith(ONLY):
        return ""
    return _MARKERS[_place(method, methods) // len(_COLOURS) % len(_MARKERS)]


def _place(method: str, methods: Sequence[str]) -> int:
    return [name for name in methods if name != BASELINE and not name.startswith(ONLY)].index(method)


@attrs.frozen
class Picture:
    """One figure: scores above (fused, then each modality alone), training loss and coefficients below.

    Several runs of a method, one per seed, are drawn as their mean and, if there are few methods, the range between the
    extremes. A modality that was trained by itself is drawn in the panel with the scores of this modality alone.

    Attributes:
        histories: For each method, the rows per epoch of each of its runs.
        modalities: Names of the modalities.
        caption: Title, protocol and task.
    """

    histories: Mapping[str, Sequence[History]]
    modalities: tuple[str, ...]
    caption: Caption

    def save(self, path: Path) -> list[Path]:
        """Draw into files beside ``path``, as PNG and as PDF; return them."""
        return write_figure(self.figure(), path)

    def figure(self) -> Any:
        """Return the figure."""
        from matplotlib.figure import Figure

        columns = 1 + len(self.modalities)
        figure = Figure(figsize=(3.6 * columns, 6.0), layout="constrained", dpi=130)
        grid = figure.add_gridspec(2, columns, height_ratios=(3, 2))
        first = figure.add_subplot(grid[0, 0])
        panels = [first, *(figure.add_subplot(grid[0, i], sharey=first) for i in range(1, columns))]
        panels += [figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1:])]
        for draw, axes in zip(self._drawers(), panels, strict=True):
            draw(axes)
            _tidy(axes, self._last_epoch())
        handles: dict[str, Any] = {}
        for panel in panels[:columns]:
            handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        columns = min(len(handles), 6)
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(title(self.caption), fontsize=11)
        return figure

    def panels(self) -> list[Any]:
        """Return every panel as a figure of its own, with its own legend."""
        from matplotlib.figure import Figure

        figures = []
        for draw in self._drawers():
            figure = Figure(figsize=(5.2, 3.8), layout="constrained")
            axes = figure.add_subplot()
            draw(axes)
            _tidy(axes, self._last_epoch())
            handles, labels = axes.get_legend_handles_labels()
            if labels:
                if (inside := axes.get_legend()) is not None:
                    inside.remove()
                figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8, ncols=4)
            figures.append(figure)
        return figures

    def _drawers(self) -> list[Callable[[Any], None]]:
        scores = [partial(self._draw_scores, modality) for modality in (None, *self.modalities)]
        return [*scores, self._draw_loss, self._draw_coefficients]

    def _draw_scores(self, modality: str | None, axes: Any) -> None:
        split, task = self.caption.select, self.caption.task
        metric = task.headline
        scale = 100 if metric.percent else 1
        key = f"{split}_{metric.key}" + ("" if modality is None else f"_{modality}")
        for method in self._methods:
            self._draw(axes, method, _scaled(key, scale), label=method)
        if f"{ONLY}{modality}" in self.histories:
            self._draw(axes, f"{ONLY}{modality}", _scaled(key, scale), label="trained alone", style="--", width=1.2)
        if task.chance is not None:
            axes.axhline(scale * task.chance, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set_title("all modalities" if modality is None else f"{modality} alone", fontsize=10)
        if metric.percent:
            axes.set_ylim(0, 102)
        unit = " (%)" if metric.percent else ""
        axes.set_ylabel(f"{'test' if split == 'test' else 'validation'} {metric.title}{unit}")

    def _draw_loss(self, axes: Any) -> None:
        for method in self._methods:
            self._draw(axes, method, lambda row: row["train_loss"])
        axes.set_title("training loss", fontsize=10)
        low, high = _extremes(axes)
        if low > 0 and high > _DECADES * low:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))

    def _draw_coefficients(self, axes: Any) -> None:
        for method in self._methods:
            runs = self.histories[method]
            for style, modality in zip(_LINE_STYLES, self.modalities, strict=False):
                key = f"coefficient_{modality}"
                if any(key in row for run in runs for row in run):
                    read = _reader(key)
                    self._draw(axes, method, read, label=f"{method}: {modality}", style=style)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        low, high = _extremes(axes)
        bottom, top = min(0, axes.get_ylim()[0]), max(1.1, axes.get_ylim()[1])
        axes.set_ylim(max(bottom, -_LARGEST), min(top, _LARGEST))
        outside = f"\nfrom {low:.2g} to {high:.2g}, partly outside" if max(-low, high) > _LARGEST else ""
        axes.set_title(f"gradient coefficient, mean over the epoch (1: untouched){outside}", fontsize=10)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

    @property
    def _methods(self) -> list[str]:
        """Methods that were trained on all modalities; the runs of single modalities if there are no others."""
        return [method for method in self.histories if not method.startswith(ONLY)] or list(self.histories)

    def _draw(
        self,
        axes: Any,
        method: str,
        read: Callable[[Row], float],
        label: str | None = None,
        style: str = "-",
        width: float = 2,
    ) -> None:
        runs = self.histories[method]
        length = min(len(run) for run in runs)
        values = np.array([[read(row) for row in run[:length]] for run in runs], dtype=np.float64)
        epochs = [row["epoch"] for row in runs[0][:length]]
        own, mark = colour(method, list(self.histories)), marker(method, list(self.histories))
        if length == 1:
            mark = mark or "o"  # a line needs two points
        place = list(self.histories).index(method)
        marks = (place % _MARKS, max(1, length // _MARKS)) if length > _MARKS else 1
        look = {"color": own, "linewidth": width, "marker": mark or None, "markevery": marks, "markersize": 5}
        axes.plot(epochs, values.mean(0), style, label=label, **look)
        if len(runs) > 1 and len(self._methods) <= _MOST_BANDS:
            axes.fill_between(epochs, values.min(0), values.max(0), color=own, alpha=0.15, linewidth=0)

    def _last_epoch(self) -> float:
        return max(run[-1]["epoch"] for runs in self.histories.values() for run in runs)


def score_figure(summary: Summary) -> Any:
    """Return the test scores as bars: all modalities, then each alone; lines are the ceilings of single modalities."""
    from matplotlib.figure import Figure

    task = summary.caption.task
    headline = summary.columns[0]
    panels = summary.narrow_columns
    lines = [line for line in summary.lines if line.results and not line.method.startswith(ONLY)]
    ceilings = {line.method.removeprefix(ONLY): line for line in summary.lines if line.method.startswith(ONLY)}
    figure = Figure(figsize=(3.6 * len(panels), 0.9 + 0.34 * max(len(lines), 3)), layout="constrained", dpi=130)
    scale = 100 if task.headline.percent else 1
    for number, column in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        _draw_bars(axes, summary, lines, column, scale)
        modality = None if number == 0 else summary.modalities[number - 1]
        ceiling = summary.spread(ceilings[modality], headline) if modality in ceilings else None
        if ceiling is not None:
            axes.axvline(scale * ceiling.mean, color="black", linewidth=1, linestyle="--")
            axes.set_title(f"{modality} alone (dashed: trained alone)", fontsize=10)
        else:
            axes.set_title("all modalities" if modality is None else f"{modality} alone", fontsize=10)
        axes.set_xlabel(f"test {task.headline.title}" + (" (%)" if task.headline.percent else ""), fontsize=9)
    figure.suptitle(title(summary.caption), fontsize=11)
    return figure


def _draw_bars(axes: Any, summary: Summary, lines: Sequence[Any], column: Any, scale: float) -> None:
    names = [line.method for line in summary.lines]
    for position, line in enumerate(lines):
        found = summary.spread(line, column)
        if found is None:
            continue
        axes.barh(position, scale * found.mean, color=colour(line.method, names), alpha=0.85, height=0.7)
        if found.std is not None:
            axes.errorbar(scale * found.mean, position, xerr=scale * found.std, color="black", capsize=3, linewidth=1)
    axes.set_yticks(range(len(lines)), [line.method for line in lines])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(axis="x", alpha=0.25)


def write_figure(figure: Any, path: Path) -> list[Path]:
    """Write a figure as PNG and as PDF beside ``path``; return the files."""
    paths = [path.with_suffix(suffix) for suffix in _SUFFIXES]
    for file in paths:
        # Dates would make two equal pictures differ.
        figure.savefig(file, metadata={"CreationDate": None} if file.suffix == ".pdf" else None)
    return paths


def title(caption: Caption) -> str:
    """Return the title of every picture."""
    return caption.title + (" (synthetic data)" if caption.synthetic else "")


def _extremes(axes: Any) -> tuple[float, float]:
    """Return the least and the largest number that is drawn."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()])
    finite = values[np.isfinite(values)]
    return float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))


def _reader(key: str) -> Callable[[Row], float]:
    return lambda row: row.get(key, float("nan"))


def _tidy(axes: Any, last_epoch: float) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_xlabel("epoch", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.set_xlim(min(1, last_epoch - 1), last_epoch)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _scaled(key: str, scale: float) -> Callable[[Row], float]:
    return lambda row: scale * row[key]
