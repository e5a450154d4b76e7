"""Pictures of runs: scores and coefficients over epochs, one colour per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from common.report.results import Caption
from common.report.view import Row

# Okabe and Ito's colours, which colour-blind readers can tell apart; the baseline is grey.
_BASELINE = "none"
_GREY = "#6e6e6e"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINE_STYLES = ("-", "--", ":", "-.")


@attrs.frozen
class Picture:
    """One figure: scores above (fused, then each modality alone), training loss and coefficients below.

    Attributes:
        histories: Rows per epoch, for each method.
        modalities: Names of the modalities.
        caption: What a reader must know.
    """

    histories: Mapping[str, Sequence[Row]]
    modalities: tuple[str, ...]
    caption: Caption

    def save(self, path: Path) -> None:
        """Draw into a PNG file."""
        from matplotlib.figure import Figure

        columns = 1 + len(self.modalities)
        figure = Figure(figsize=(3.6 * columns, 6.0), layout="constrained", dpi=130)
        grid = figure.add_gridspec(2, columns, height_ratios=(3, 2))
        first = figure.add_subplot(grid[0, 0])
        panels = [first, *(figure.add_subplot(grid[0, i], sharey=first) for i in range(1, columns))]
        self._draw_scores(panels)
        self._draw_loss(figure.add_subplot(grid[1, 0]))
        self._draw_coefficients(figure.add_subplot(grid[1, 1:]))
        for axes in figure.axes:
            _tidy(axes, self._last_epoch())
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.suptitle(self._title(), fontsize=11)
        figure.savefig(path)

    def _draw_scores(self, panels: Sequence[Any]) -> None:
        split, task = self.caption.select, self.caption.task
        metric = task.headline
        scale = 100 if metric.percent else 1
        suffixes = ["", *(f"_{name}" for name in self.modalities)]
        titles = ["all modalities", *(f"{name} alone" for name in self.modalities)]
        for axes, suffix, title in zip(panels, suffixes, titles, strict=True):
            for method, rows in self.histories.items():
                values = [scale * row[f"{split}_{metric.key}{suffix}"] for row in rows]
                axes.plot(_epochs(rows), values, color=self._colour(method), label=method, linewidth=2)
            if task.chance is not None:
                axes.axhline(scale * task.chance, color="black", linewidth=0.8, linestyle=":", label="chance")
            axes.set_title(title, fontsize=10)
            if metric.percent:
                axes.set_ylim(0, 102)
        unit = " (%)" if metric.percent else ""
        panels[0].set_ylabel(f"{'test' if split == 'test' else 'validation'} {metric.title}{unit}")

    def _draw_loss(self, axes: Any) -> None:
        for method, rows in self.histories.items():
            axes.plot(_epochs(rows), [row["train_loss"] for row in rows], color=self._colour(method), linewidth=2)
        axes.set_title("training loss", fontsize=10)
        axes.set_ylim(bottom=0)

    def _draw_coefficients(self, axes: Any) -> None:
        for method, rows in self.histories.items():
            for style, modality in zip(_LINE_STYLES, self.modalities, strict=False):
                key = f"coefficient_{modality}"
                seen = [row for row in rows if key in row]
                if seen:
                    label = f"{method}: {modality}"
                    values = [row[key] for row in seen]
                    axes.plot(_epochs(seen), values, style, color=self._colour(method), label=label, linewidth=2)
        axes.set_title("gradient coefficient per modality (mean over the epoch; 1 = untouched)", fontsize=10)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=9)

    def _colour(self, method: str) -> str:
        if method == _BASELINE:
            return _GREY
        others = [name for name in self.histories if name != _BASELINE]
        return _COLOURS[others.index(method) % len(_COLOURS)]

    def _last_epoch(self) -> float:
        return max(rows[-1]["epoch"] for rows in self.histories.values())

    def _title(self) -> str:
        return self.caption.title + (" (generated data)" if self.caption.generated else "")


def _epochs(rows: Sequence[Row]) -> list[float]:
    return [row["epoch"] for row in rows]


def _tidy(axes: Any, last_epoch: float) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_xlabel("epoch", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.set_xlim(min(1, last_epoch - 1), last_epoch)
    axes.xaxis.get_major_locator().set_params(integer=True)
