"""Bars by modality, drawn by matplotlib, which is loaded here alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from modbalance.errors import ConfigError

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@attrs.frozen
class Panel:
    """One panel of bars.

    Attributes:
        title: Its title.
        values: Height of each bar.
        errors: Half the length of each error bar; none: no error bars.
        ceilings: Dashed line over each bar; ``None``: none.
        line: Grey line over all bars; ``None``: none.
    """

    title: str
    values: Sequence[float]
    errors: Sequence[float] | None = None
    ceilings: Sequence[float | None] = ()
    line: float | None = None


def save(path: Path, title: str, names: Sequence[str], panels: Sequence[Panel]) -> Path:
    """Draw panels side by side into a file and return its path.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "The picture of a diagnosis needs matplotlib. Found no such package: `pip install matplotlib`, or read "
            "the table, `print(diagnosis)`."
        ) from None
    figure = Figure(figsize=(3 * len(panels), 3.2), layout="constrained")
    colours = [_COLOURS[index % len(_COLOURS)] for index in range(len(names))]
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.bar(names, panel.values, yerr=panel.errors, capsize=4, color=colours)
        axes.set_title(panel.title)
        for index, ceiling in enumerate(panel.ceilings):
            if ceiling is not None:
                axes.hlines(ceiling, index - 0.4, index + 0.4, colors="black", linestyles="--")
        if panel.line is not None:
            axes.axhline(panel.line, color="#6e6e6e", linewidth=1)
            axes.set_xlabel("grey: fused; dashed: ceiling")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    return path
