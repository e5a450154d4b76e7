"""Draws the pictures of docs/start.md by running the code of the page.

python docs/figures.py    (a few minutes; needs matplotlib)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
METHODS: dict[str, dict[str, Any]] = {"none": {}, "dgl": {"alpha": 1.0}}
COLOURS = {"both": "#444444", "audio": "#d1495b", "visual": "#30638e"}
EPOCHS = range(1, 21)


def main() -> None:
    """Write images/start.png."""
    definitions = BLOCK.findall((DOCS / "start.md").read_text(encoding="utf-8"))[:2]
    page: dict[str, Any] = {"__name__": "docs"}
    exec("\n".join(definitions), page)
    figure, axes = plt.subplots(1, len(METHODS), figsize=(8, 3), sharey=True, layout="constrained")
    for axis, (method, options) in zip(axes, METHODS.items(), strict=True):
        # Trainings are repeatable, so the one of n epochs is the beginning of the longer ones.
        points = [page["accuracy"](page["train"](method, epochs, **options)[0]) for epochs in EPOCHS]
        for name, colour in COLOURS.items():
            label = name if name == "both" else f"{name} alone"
            axis.plot(EPOCHS, [point[name] for point in points], color=colour, label=label)
        axis.set(title=method, xlabel="epoch", ylim=(20, 101))
        axis.axhline(25, color="#bbbbbb", linestyle=":")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("accuracy on new samples, %")
    axes[1].legend(loc="lower right")
    figure.savefig(DOCS / "images" / "start.png", dpi=110)


if __name__ == "__main__":
    main()
