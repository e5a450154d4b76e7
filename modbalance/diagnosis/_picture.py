"""Picture of a diagnosis: bars by modality, drawn by matplotlib, which is loaded here alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modbalance.diagnosis._report import Diagnosis
from modbalance.errors import ConfigError

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save(diagnosis: Diagnosis, path: Path) -> Path:
    """Draw a diagnosis into a file and return its path.

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
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    of = diagnosis.modalities
    names = [*of]
    colours = [_COLOURS[index % len(_COLOURS)] for index in range(len(names))]
    _bars(left, names, [of[name].alone[diagnosis.way] for name in names], colours, f"{diagnosis.quantity} alone")
    for index, name in enumerate(names):
        ceiling = of[name].ceiling
        if ceiling is not None:
            left.hlines(ceiling, index - 0.4, index + 0.4, colors="black", linestyles="--")
    left.axhline(diagnosis.fused, color="#6e6e6e", linewidth=1)
    left.set_xlabel("grey: fused; dashed: ceiling")
    errors = [of[name].shapley_error for name in names]
    _bars(middle, names, [of[name].shapley for name in names], colours, "Shapley value", errors)
    shares = [of[name].gradient_share for name in names]
    _bars(right, names, [0.0 if share is None else share for share in shares], colours, "share of gradient norm")
    figure.suptitle(f"{'imbalanced' if diagnosis.is_imbalanced else 'no imbalance'}, degree {diagnosis.degree:.2f}")
    figure.savefig(path, dpi=110)
    return path


def _bars(
    axes: Any, names: list[str], values: list[float], colours: list[str], title: str, errors: list[float] | None = None
) -> None:
    axes.bar(names, values, yerr=errors, capsize=4, color=colours)
    axes.set_title(title)
