"""MSLR: a learning rate for each modality, from its accuracy after each epoch.

Source: Yao, Mihalcea, "Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion", Findings of ACL
2022, as the baseline in the code of AGM (ICCV 2023) has it. Deviations: docs/methods/mslr.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import (
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
    optional,
    state,
    suggest,
)
from modbalance.results import epoch_results, scalar
from modbalance.scores import clearly_greater


def factors(value: Any) -> str | None:
    """Check for a mapping from names to finite numbers > 0."""
    is_valid = isinstance(value, Mapping) and all(
        isinstance(each, int | float) and 0 < each < math.inf for each in value.values()
    )
    return None if is_valid else "a mapping from modalities to finite numbers > 0"


@attrs.define(eq=False, kw_only=True)
class MSLR(WindowedMethod):
    """Scales the learning of modality i by init_i * ratio_i, ratio_i = its accuracy / mean of those in its memory.

    Touches the gradients of all encoder parameters, or with `mode="lr"` the update that the inner optimizer made. Needs
    accuracies after each epoch of its window; costs one multiplication per gradient, with `mode="lr"` a copy of the
    encoders during a step. No host read in a step.
    """

    name: ClassVar[str] = "mslr"
    needs = frozenset({"accuracy"})
    min_modalities = 2
    suits: ClassVar[Mapping[str, str]] = {
        "starved": "Adapts the learning rate of each encoder to its validation accuracy."
    }
    step_cost: ClassVar[float | None] = 1.01

    end_epoch: int | None = option(
        19, optional(integer(0)), "last epoch of the window, 0-based, inclusive; None: no end", paper=None
    )
    init: Mapping[str, float] | None = option(None, optional(factors), "factor by modality, > 0; 1 where left out")
    memory: int = option(5, integer(1), "accuracies, one per epoch, that a new one is compared with, >= 1")
    mode: str = option("grad", one_of("grad", "lr"), "what is scaled: the gradient, or the learning rate", paper="lr")
    ratio: dict[str, float] = state({})
    accuracies: dict[str, list[float]] = state({})

    def modulates(self, name: str, parameter: Tensor) -> bool:
        """Whether the gradient is scaled: then that of every parameter of an encoder."""
        return self.mode == "grad"

    def update_refusal(self) -> str | None:
        """Return a refusal of `mode="lr"`, which scales the update itself, with its weight decay."""
        if self.mode == "grad":
            return None
        return 'which with `mode = "lr"` scales the update itself: leave `mode` out, or `apply`'

    def factor(self, modality: str) -> float:
        """Return init_i * ratio_i; not finite where accuracies were not, or all 0."""
        return (self.init or {}).get(modality, 1.0) * self.ratio.get(modality, 1.0)

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Check the names in `init`, and the optimizer."""
        if self.mode == "lr" and run.has_two_passes:
            raise ConfigError(
                'Option `mode = "lr"` of method `mslr` should measure the update of one pass. Found an optimizer of '
                'two passes, such as SAM: use `mode="grad"`.'
            )
        for name in self.init or {}:
            if name not in run.modalities:
                raise ConfigError(f"Option `init` of method `mslr` names {name!r}. {suggest(name, run.modalities)}")

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return init_i * ratio_i; the core multiplies the gradients by it in mode "grad", and logs it in both."""
        return {name: scalar(step.run, self.factor(name)) for name in step.run.modalities}

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Keep the weights before the step, p_old, where the learning rate is to be scaled."""
        if self.mode == "grad":
            return
        for modality in step.run.modalities:
            factor = self.factor(modality)
            moving = [p for _, p in step.run.parameters(modality) if p.grad is not None]
            scales = clearly_greater(factor, 1) or clearly_greater(1, factor)
            if moving and scales and math.isfinite(factor):
                step.cache[modality] = factor, moving, [p.detach().clone() for p in moving]

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        """Replace the new weights by p_old + factor * (p_new - p_old), which includes the weight decay."""
        for factor, moved, old in step.cache.values() if not step.run.dry_run else ():
            torch._foreach_lerp_(moved, old, 1 - factor)  # init_i ratio_i times the update of the learning rate

    @hookimpl
    def modbalance_epoch_end(self, run: Run, data: EpochData) -> None:
        """Fill the memory; once it is full, set the ratio, and let the memory slide."""
        for name, new in epoch_results(self, run, data, "accuracy").items():
            seen = self.accuracies.get(name, [])
            if len(seen) == self.memory:
                mean, size = sum(seen) / len(seen), sum(map(abs, seen)) / len(seen)
                # Numbers of both signs may cancel but for rounding.
                is_sound = clearly_greater(size + abs(mean), size)
                self.ratio[name] = new / mean if is_sound else math.nan  # ratio_i = a_i(e) / mean of a_i before
                seen = seen[1:]
            self.accuracies[name] = [*seen, new]
            run.log(f"accuracy/{name}", new)
            run.log(f"ratio/{name}", self.ratio.get(name, 1.0))


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [MSLR]
