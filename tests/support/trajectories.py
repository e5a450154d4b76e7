"""Recorded runs of the papers' code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

AMPLIFYING = frozenset({"dgl_clip", "ogm_saturated"})
NUDGES = 9
FOLDER = Path(__file__).parents[1] / "data" / "trajectories"


class Trajectory:
    """One recorded run: initial weights, batches, final weights."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz") as file:
            self._arrays = {key: file[key] for key in file.files}
        self.meta: dict[str, Any] = {"name": name, **json.loads(bytes(self._arrays["meta"]))}

    def start(self, model: nn.Module, nudge: int = 0) -> None:
        """Give ``model`` the weights that the run began with; with a ``nudge`` each is moved by one last digit."""
        initial = self.part("init/")
        if nudge:
            generator = torch.Generator().manual_seed(nudge)
            for name, tensor in initial.items():
                if tensor.is_floating_point():
                    sign = 2 * torch.randint(2, tensor.shape, generator=generator) - 1
                    initial[name] = torch.nextafter(tensor, tensor + sign)
        model.load_state_dict(initial)

    def limit(self, run: Callable[[int], nn.Module]) -> float:
        """Return how far from the recorded weights an equal computation may end: 1e-6, or more if the run amplifies.

        Two of the recorded runs amplify rounding, and processors round sums in different orders. What that makes of
        the final weights is measured: the run is repeated from weights that are moved by one last digit.

        Args:
            run: From a nudge to the model at the end of the run.
        """
        if self.meta["name"] not in AMPLIFYING:
            return 1e-6
        ends = [{name: tensor.double() for name, tensor in run(nudge).state_dict().items()} for nudge in range(NUDGES)]
        moved = [self._distance(end, ends[0]) for end in ends[1:]]
        return max(1e-6, *moved)

    def _distance(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
        scales = {name: max(1.0, float(tensor.abs().max())) for name, tensor in other.items()}
        return max(float((one[name] - other[name]).abs().max()) / scales[name] for name in self.part("final/"))

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
