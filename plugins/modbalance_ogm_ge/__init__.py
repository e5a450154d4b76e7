"""OGM and OGM-GE: on-the-fly gradient modulation, with generalization enhancement.

Source: Peng, Wei, Deng, Wang, Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022.
Eq. 8 to 10 for OGM, to 12 with the noise of GE. Deviations of the authors' code from the paper, and which side each
option takes: docs/methods/ogm_ge.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import (
    Batch,
    Method,
    Run,
    Step,
    WindowedMethod,
    ge,
    gradients,
    gt,
    hookimpl,
    integer,
    one_of,
    option,
    optional,
    sharding,
)
from modbalance.scores import clearly_greater

ParamFilter = str | Callable[[str, Tensor], bool]
SELECTS: dict[str, Callable[[int], bool]] = {
    "conv": lambda ndim: ndim == 4,
    "matrix": lambda ndim: ndim >= 2,
    "all": lambda ndim: True,
}


@attrs.define(eq=False, kw_only=True)
class OGM(WindowedMethod):
    """Scales down the encoder gradients of the modality that is ahead.

    Touches the gradients of the encoders that `param_filter` selects; fusion and head stay as they are. Needs one
    softmax per modality on logits that the forward yields anyway: no further pass, no host read.
    """

    name: ClassVar[str] = "ogm"
    needs = frozenset({"unimodal_logits", "target"})
    min_modalities = 2
    suits: ClassVar[Mapping[str, str]] = {"dominated": "Scales down the gradients of the encoder whose logits do best."}
    step_cost: ClassVar[float | None] = 1.02

    alpha: float = option(0.8, gt(0), "modulation strength, dimensionless, > 0")
    end_epoch: int | None = option(50, optional(integer(0)), "last epoch of the window, 0-based, inclusive")
    param_filter: ParamFilter = option(
        "conv", one_of(*SELECTS, or_callable=True), "encoder parameters that are modulated", paper="all"
    )
    ratio: str = option("mean_others", one_of("mean_others", "min"), "what a score is compared with, for M >= 3")
    tie: str = option(
        "first", one_of("first", "last", "none"), "which modality is suppressed when all are equal", paper="none"
    )
    ratio_shift: float = option(0, one_of(0, 1), "1 makes the coefficient continuous where the ratio is 1")

    def modulates(self, name: str, parameter: Tensor) -> bool:
        """Whether `param_filter` selects this parameter."""
        if callable(self.param_filter):
            return bool(self.param_filter(name, parameter))
        return SELECTS[self.param_filter](parameter.dim())

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Warn of encoders of which nothing is modulated, such as a transformer's without convolutions."""
        for modality in run.modalities:
            named = run.encoder_parameters(modality)
            if named and not any(self.modulates(*each) for each in named):
                run.warn(
                    f"`param_filter={self.param_filter!r}` of method `{self.name}` selects no parameter of the encoder "
                    f"of {modality!r}, whose gradients therefore stay as they are. Pass param_filter='all'."
                )

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        """Sum the scores s_i of each modality, and count them."""
        s, count = batch.scores(batch.unimodal_logits)  # Eq. 8: s_i = sum over the batch of softmax(o_i)[y]
        return {"score": s, "count": count}

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return the coefficients k_i: below 1 for a modality that is ahead, 1 for the others."""
        score = step.stats["score"] / step.stats["count"]
        rho = self.discrepancy(score)
        # Eq. 10: k_i = 1 - tanh(alpha rho_i) if rho_i > 1, else 1
        k = 1 - torch.tanh(self.alpha * (rho - self.ratio_shift).clamp(min=0)) * self.is_ahead(rho)
        # x/0 saturates (k = 0), as in the authors' code; 0/0 and scores that are not finite give NaN, which the core
        # replaces by 1 and counts.
        k = k + 0 * score.sum()
        step.run.log_each("ratio", rho.unbind())
        return dict(zip(step.run.modalities, k.unbind(), strict=True))

    def discrepancy(self, score: Tensor) -> Tensor:
        """Return the discrepancy ratios rho_i from the scores s_i; shapes (M,)."""
        others = [score.roll(shift) for shift in range(1, len(score))]  # s_j, j != i, at place i
        if self.ratio == "min":
            return score / functools.reduce(torch.minimum, others)
        # Added one by one: the order of `sum` depends on memory alignment, and ranks would differ.
        return score / (functools.reduce(torch.add, others) / len(others))  # Eq. 9 for M = 2: rho_i = s_i / s_j

    def is_ahead(self, rho: Tensor) -> Tensor:
        """Return which modalities are suppressed, boolean (M,); the authors' code breaks ties against the first."""
        ahead = clearly_greater(rho, 1)
        if self.tie != "none":
            chosen = ahead[:1] if self.tie == "first" else ahead[-1:]
            chosen.logical_or_(~ahead.any())
        return ahead


@attrs.define(eq=False, kw_only=True)
class OGMGE(OGM):
    """OGM with generalization enhancement: Gaussian noise on the modulated gradients.

    The noise of each tensor has the standard deviation of its gradient's elements. It is a function of `seed` and of
    the number of steps taken, so ranks agree and a resumed run draws what the uninterrupted one would have. Of a
    sharded tensor each rank draws the noise of its own part, from a stream of its own.
    """

    name: ClassVar[str] = "ogm_ge"
    step_cost: ClassVar[float | None] = 1.36

    noise_on: str = option("both", one_of("both", "suppressed"), "which modalities get noise: all, or those ahead")
    noise_source: str = option("raw", one_of("raw", "modulated"), "gradient whose standard deviation the noise takes")
    noise_scale: float = option(1.0, ge(0), "factor on the standard deviation of the noise, dimensionless, >= 0")
    seed: int = option(0, integer(0), "seed of the noise")

    def update_refusal(self) -> str | None:
        """Return a refusal of noise, which is measured by modulated gradients and added to them."""
        if not self.noise_scale:
            return None
        return "which adds noise to modulated gradients: use `ogm`, pass `noise_scale=0`, or leave `apply` out"

    def exemptions(self) -> dict[str, str]:
        """Return the rules of `modbalance.testing` that do not hold with these options."""
        return {"order_of_modalities": "noise is drawn for one modality after the other"}

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Keep the standard deviation of the raw gradients, then return the coefficients of OGM."""
        if self.noise_source == "raw":
            step.cache["sigma"] = self.sigma(step)
        return OGM.modbalance_coefficients(self, step)

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Add noise N(0, sigma^2) to each modulated tensor: g <- k_i g + epsilon."""
        sigma = step.cache.get("sigma") or self.sigma(step)
        for modality, coefficient in step.coefficients.items():
            for (device, shard), parameters in by_stream(step.parameters(modality)).items():
                of_each = [sigma[id(p)] for p in parameters]
                if self.noise_on == "suppressed":
                    of_each = [*torch._foreach_mul(of_each, clearly_greater(1, coefficient).to(of_each[0]))]
                generator = step.generator(device, self.seed, shard)
                edited = sharding.local_values(gradients.all_values(parameters))
                gradients.add_noise_(edited, of_each, generator)

    def sigma(self, step: Step) -> dict[int, Tensor]:
        """Return by id of a parameter the standard deviation of its gradient's elements, unbiased, + 1e-8; 0-dim."""
        everything = [p for modality in step.run.modalities for p in step.parameters(modality)]
        sigma: dict[int, Tensor] = {}
        for parameters in by_device(everything).values():
            found = self.noise_scale * (gradients.std(gradients.all_values(parameters)) + 1e-8)
            sigma |= zip(map(id, parameters), found, strict=True)
        return sigma


def by_device(parameters: Iterable[Tensor]) -> dict[torch.device, list[Tensor]]:
    """Return the parameters by device, in order."""
    found: dict[torch.device, list[Tensor]] = {}
    for parameter in parameters:
        found.setdefault(parameter.device, []).append(parameter)
    return found


def by_stream(parameters: Sequence[Tensor]) -> dict[tuple[torch.device, int], list[Tensor]]:
    """Return the parameters by device and the part of them that this rank holds, in order."""
    found: dict[tuple[torch.device, int], list[Tensor]] = {}
    for parameter, shard in zip(parameters, sharding.shards_of(parameters), strict=True):
        found.setdefault((parameter.device, shard), []).append(parameter)
    return found


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer both methods."""
    return [OGM, OGMGE]
