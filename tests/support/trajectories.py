"""Recorded runs of the papers' code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / "data" / "trajectories"


class Trajectory:
    """One recorded run: initial weights, batches, final weights."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz") as file:
            self._arrays = {key: file[key] for key in file.files}
        self.meta: dict[str, Any] = json.loads(bytes(self._arrays["meta"]))

    def start(self, model: nn.Module) -> None:
        """Give ``model`` the weights that the run began with."""
        model.load_state_dict(self.part("init/"))

    def batches(
        self, dtype: torch.dtype, keys: tuple[str, ...] = ("audio", "visual")
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield (inputs, target), one batch a step."""
        count = len({key.split("/")[1] for key in self._arrays if key.startswith("batch/")})
        for index in range(count):
            batch = self.part(f"batch/{index}/")
            yield tuple(batch[key].to(dtype) for key in keys), batch["target"]

    def error(self, model: nn.Module) -> float:
        """Return the largest difference from the final weights, relative to a tensor's largest entry if that is > 1."""
        ours, errors = model.state_dict(), []
        for name, expected in self.part("final/").items():
            scale = max(1.0, float(expected.double().abs().max()))
            errors.append(float((ours[name].double() - expected.double()).abs().max()) / scale)
        return max(errors)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the recorded arrays under ``prefix``, by the rest of their names."""
        return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self._arrays.items() if k.startswith(prefix)}
