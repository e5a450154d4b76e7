"""MSES: early stopping for each modality, by its validation loss.

Source: Fujimori et al., "Modality-Specific Learning Rate Control for Multimodal Classification", ACPR 2019, as the
baseline in the code of AGM (ICCV 2023) has it. Deviations: docs/methods/mses.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import (
    CheckpointError,
    ConfigError,
    EpochData,
    Method,
    Run,
    Step,
    WindowedMethod,
    hookimpl,
    integer,
    one_of,
    option,
    state,
)
from modbalance.results import epoch_results, scalar
from modbalance.scores import clearly_greater
from modbalance_mses import rewinding

PREVIOUS, CURRENT = 0.6, 0.4  # weights of two raw losses in the smoothed one; no exponential average


@attrs.define(eq=False, kw_only=True)
class MSES(WindowedMethod):
    """Stops a modality, ratio_i = 0, when its best epoch lies more than `patience` epochs back, and rewinds to it.

    Touches the gradients of all encoder parameters, and weights and optimizer state when it rewinds. Needs losses
    after each epoch; costs one multiplication per gradient, and a copy on the CPU when a loss improves. No host read
    in a step. `opt.should_stop` is true once all modalities have stopped.
    """

    name: ClassVar[str] = "mses"
    min_modalities = 2
    suits: ClassVar[Mapping[str, str]] = {
        "starved": "Stops an encoder that no longer improves, while the others go on."
    }
    step_cost: ClassVar[float | None] = 1.02

    patience: int = option(
        80, integer(0), "epochs that a modality goes on after its best one; it stops after more", short=3
    )
    freeze: str = option(
        "official", one_of("official", "hard"), "gradient of a stopped modality: times 0, or None", paper="hard"
    )
    rewind: str = option(
        "all", one_of("all", "modality", "none"), "what goes back to the best epoch of a modality", paper="modality"
    )
    ratio: dict[str, float] = state({})
    losses: dict[str, float] = state({})
    best: dict[str, dict[str, float]] = state({})
    copies: dict[str, Any] = state({}, on_host=True)

    def update_refusal(self) -> None:
        """None: the ratio, 0 or 1, goes to the update; `freeze="hard"` takes gradients away, which stops both."""

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Raise a ConfigError for an optimizer whose state cannot be copied: nothing could be rewound."""
        if self.rewind == "none":
            return
        try:
            run.optimizer_state()
        except RuntimeError as error:
            raise ConfigError(
                f"Method `mses` copies the optimizer's state for `rewind = {self.rewind!r}`. Found that each rank "
                "holds a part of it, as in ZeroRedundancyOptimizer: pass `rewind='none'`, or the optimizer itself."
            ) from error

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return ratio_i: 0 for a modality that has stopped, else 1."""
        return {name: scalar(step.run, self.ratio.get(name, 1.0)) for name in step.run.modalities}

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Take the gradients of stopped modalities away, so that neither momentum nor weight decay moves them."""
        stopped = [name for name, ratio in self.ratio.items() if not ratio] if self.freeze == "hard" else []
        for parameter in (p for name in stopped for p in step.parameters(name)):
            parameter.grad = None

    @hookimpl
    def modbalance_epoch_end(self, run: Run, epoch: int, data: EpochData) -> None:
        """Note the losses; stop each modality whose best epoch e*_i is too long ago, and rewind to that epoch."""
        for name, raw in epoch_results(self, run, data, "loss").items():
            self.note(name, raw, epoch)
            run.log(f"best_loss/{name}", self.best[name]["loss"])
        self.keep_copies(run, epoch)
        stopping = [name for name in self.going if epoch - self.best[name]["epoch"] > self.patience]  # e - e*_i > P
        self.ratio |= dict.fromkeys(stopping, 0.0)  # ratio_i = 0, for good
        for name, ratio in self.ratio.items():
            run.log(f"ratio/{name}", ratio)
        if not run.dry_run:
            for name in stopping:
                self.go_back(run, name)
            if not self.going:
                run.stop()
        self.copies = {key: kept for key, kept in self.copies.items() if key in self.needed(self.best, self.going)}

    @property
    def going(self) -> list[str]:
        """The modalities that have not stopped."""
        return [name for name, ratio in self.ratio.items() if ratio]

    def note(self, name: str, raw: float, epoch: int) -> None:
        """Smooth the raw loss l_i(e), and note the epoch as the best, e*_i, if the result is clearly the lowest.

        Losses are measured in single precision; an equal one is no improvement.
        """
        smoothed = PREVIOUS * self.losses[name] + CURRENT * raw if name in self.losses else raw  # 0.6 l(e-1) + 0.4 l(e)
        self.losses[name] = raw
        self.ratio.setdefault(name, 1.0)
        if name not in self.best or clearly_greater(self.best[name]["loss"], smoothed, torch.float32):
            # A loss that is not finite is no result to beat.
            self.best[name] = {"loss": smoothed if math.isfinite(smoothed) else math.inf, "epoch": epoch}

    def keep_copies(self, run: Run, epoch: int) -> None:
        """Copy the training for a later rewind, if this epoch is the best one of a modality so far."""
        improved = [name for name in self.going if self.best[name]["epoch"] == epoch]
        if run.dry_run or self.rewind == "none" or not improved:
            return
        if self.rewind == "modality":
            self.copies |= {name: rewinding.take(run, name) for name in improved}
        else:
            self.copies[str(epoch)] = {**rewinding.take(run), "best": copy.deepcopy(self.best)}

    def go_back(self, run: Run, name: str) -> None:
        """Rewind the modality, or with "all" everything: weights, optimizer, and the best epochs of that time."""
        if self.rewind == "modality":
            rewinding.put_back(run, self.copies[name], name)
        elif self.rewind == "all":
            kept = self.copies[str(self.best[name]["epoch"])]
            rewinding.put_back(run, kept)
            self.best = copy.deepcopy(kept["best"])

    def needed(self, best: Mapping[str, Mapping[str, float]], going: list[str]) -> set[str]:
        """Return the keys of the copies that further stops, in any order, can go back to."""
        if self.rewind != "all":
            return set(going)
        keys: set[str] = set()
        for name in going:
            key = str(best[name]["epoch"])
            # A rewind to this copy also restores the best epochs of the others.
            others = [other for other in going if other != name]
            keys |= {key} | (self.needed(self.copies[key]["best"], others) if key in self.copies else set())
        return keys

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Raise a CheckpointError for a state without the copies that `rewind` needs."""
        super().check_state(saved)
        going = [name for name, ratio in saved["ratio"].items() if ratio]
        keys = {"all": {str(saved["best"][name]["epoch"]) for name in going}, "modality": set(going), "none": set()}
        if not keys[self.rewind] <= set(saved["copies"]):
            raise CheckpointError(
                f"The saved state of method `mses` should hold copies to rewind to, with `rewind = {self.rewind!r}`. "
                f"Found {sorted(saved['copies']) or 'none'}: pass the `rewind=` that the run began with."
            )


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [MSES]
