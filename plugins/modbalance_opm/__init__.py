"""OPM: on-the-fly prediction modulation, which drops features of the modality that is ahead in a batch.

Source: Wei, Hu, Du, Wen, "On-the-fly Modulation for Balanced Multimodal Learning", IEEE T-PAMI 2024. Symbols are those
of docs/methods/opm.md, which also lists quirks of the authors' code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import (
    Batch,
    ConfigError,
    Method,
    Run,
    WindowedMethod,
    between,
    ge,
    hookimpl,
    integer,
    one_of,
    option,
)
from modbalance.method import Preset
from modbalance.scores import clearly_greater, row_mask

_STEEPEST = 32  # ratio of scores from which on tanh is 1, in double precision too
_STRIDE = 1_000_003  # between the streams of two ranks: more than any step has micro-batches


@attrs.define(eq=False, kw_only=True)
class OPM(WindowedMethod):
    """Drops features of the modality that is ahead, sample by sample, with a probability that grows with its lead.

    Touches the features on their way into the fusion, and with `theta_gradient` the loss, by a term whose value is 0.
    Costs one more pass of the fusion; no further encoder pass, no host read, no state.
    """

    name: ClassVar[str] = "opm"
    needs = frozenset({"features", "unimodal_logits", "target", "loss_fn"})
    min_modalities = 2
    suits: ClassVar[Mapping[str, str]] = {"dominated": "Drops features of the modality whose logits do best."}
    presets: ClassVar[tuple[Preset, ...]] = ("official",)
    excluded_hooks = frozenset({"modbalance_features"})
    step_cost: ClassVar[float | None] = 1.01

    start_epoch: int = option(6, integer(0), "first epoch of the window, 0-based, inclusive", short=0)
    q_base: float = option(0.5, between(0, 1), "drop rate at the smallest lead, in [0, 1]")
    lam: float = option(0.5, ge(0), "growth of the drop rate with the lead, dimensionless, >= 0")
    p_exe: float = option(0.7, between(0, 1), "probability that a step drops anything, in [0, 1]")
    theta_gradient: bool = option(
        True, one_of(True, False), "whether encoders get the further gradient theta * d(theta) of the authors' code"
    )
    ratio: str = option("mean_others", one_of("mean_others", "min"), "what a score is compared with, for M >= 3")
    seed: int = option(0, integer(0), "seed of the draws")

    _drawing: tuple[Run, int, torch.device] | None = attrs.field(default=None, init=False, repr=False)
    """Run, number of the micro-batch and device of a call of `draw`."""

    def exemptions(self) -> Mapping[str, str]:
        """Return the rules of `modbalance.testing` that do not hold with these options."""
        return {
            "accumulation": "rates and draws are those of each micro-batch, before the backward",
            "order_of_modalities": "bits are drawn for one modality after the other",
        }

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Raise a ConfigError for a model whose fusion is not known: it could not run on other features."""
        if not run.fusion_modules and run.fusion_callable is None:
            raise ConfigError(
                "Method `opm` needs `fusion=`, where features become logits: a path, a module, a list of them or a "
                "callable. Found none."
            )

    @hookimpl
    def modbalance_logits(self, batch: Batch) -> Tensor:
        """Return the fused logits of the features that are left, each divided by 1 - theta."""
        z, run = batch.require_features(), batch.run
        s, ranks = self.scores(batch)
        q = self.rates(run, s)
        width = sum(each.shape[-1] for each in z.values())
        # theta = sum_i D_i q_i / sum_i D_i
        theta = functools.reduce(
            torch.add, [q_i * (each.shape[-1] / width) for q_i, each in zip(q, z.values(), strict=True)]
        )
        self._drawing = run, batch.index, s.device
        try:
            executed, bits = self.draw(run.steps, q.detach(), (len(batch.logits), len(z)))
        finally:
            self._drawing = None
        bits = self.spared(batch, bits | ~executed)
        held = theta.detach() * executed
        batch.cache["theta"] = held * (theta - held) * ranks
        run.log_each("rate", q.detach().unbind())
        run.log("executed", executed)
        # z_i[b] <- beta_{b,i} z_i[b] / (1 - theta)
        return batch.fuse({name: left(each, beta, held) for (name, each), beta in zip(z.items(), bits.T, strict=True)})

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return theta' (theta - theta'), theta' = sg(theta): the value 0, with the gradient of theta^2 / 2."""
        return {"theta": batch.cache["theta"]} if self.theta_gradient and "theta" in batch.cache else {}

    def draw(self, step: int, q: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return whether anything is dropped, boolean and 0-dim, and which features stay, boolean (B, M).

        Override it to replay recorded draws. The first is equal on all ranks, the second a rank's own; both are
        functions of `seed`, step and micro-batch, so that a resumed training draws the same.

        Args:
            step: Number of the steps in which the method has acted.
            q: Drop rates, (M,).
            shape: Number of samples and of modalities, (B, M).
        """
        assert self._drawing is not None
        run, index, device = self._drawing
        shared = run.generator(device, self.seed, 2 * index)
        own = run.generator(device, self.seed, 2 * (index + _STRIDE * run.rank) + 1)
        u = torch.rand((), generator=shared, device=device)
        return u >= 1 - self.p_exe, torch.rand(shape, generator=own, device=device) >= q

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean scores s_i over all ranks, (M,), with graph to the samples of this one, and their number."""
        # o_i = z_i W_i^T + b / M with the weights as constants
        o = batch.unimodal_logits_live(frozen_head=True) if self.theta_gradient else batch.unimodal_logits
        own, count = batch.scores(o, live=self.theta_gradient)
        total, count, ranks = batch.run.sums([own.detach(), count, torch.ones_like(own[0])])
        # The gradients of ranks are averaged by DDP; theta is one number of all.
        return (total + (own - own.detach())) / count.clamp(min=1), ranks

    def rates(self, run: Run, s: Tensor) -> Tensor:
        """Return the drop rates q_i, (M,), from the scores s_i: above 0 for modalities that are ahead."""
        others = compared(s, self.ratio)
        is_finite = s.isfinite().all()
        run.count_each("degenerate", ~(is_finite & (others > 0)))
        # Beyond, tanh(r_i - 1) is 1 and its slope 0, while the slope of r_i may overflow: 0 times infinity is NaN.
        has_no_slope = ~((s <= _STEEPEST * others) & (others > 2 * _STEEPEST / torch.finfo(s.dtype).max))
        # Not a product with 0 or 1: NaN would stay in it, and in its gradient.
        r = s.masked_fill(has_no_slope, 1) / others.masked_fill(has_no_slope, 1)
        rho = torch.tanh(r - 1).masked_fill(has_no_slope, 1)  # rho_i = tanh(relu(r_i - 1)), where r_i > 1
        q = (self.q_base * (1 + self.lam * rho)).clamp(max=1)  # q_i = clip(q_base (1 + lambda rho_i), 0, 1)
        return q.masked_fill(~(is_finite & clearly_greater(s, others)), 0)

    def spared(self, batch: Batch, bits: Tensor) -> Tensor:
        """Return the bits, with all modalities kept in samples that would lose each one that they have."""
        if not batch.present:
            return bits
        all_there = torch.ones_like(bits[:, 0])
        there = torch.stack([batch.present.get(name, all_there).to(bits.device) for name in batch.run.modalities], 1)
        return bits | ~(bits & there).any(1, keepdim=True)


def compared(s: Tensor, ratio: str) -> Tensor:
    """Return what each score is compared with, (M,): the mean of the others, or the smallest of them."""
    others: Sequence[Tensor] = [s.roll(shift) for shift in range(1, len(s))]
    if ratio == "min":
        return functools.reduce(torch.minimum, others)
    # Added one by one: the order of `sum` depends on memory alignment, and ranks would differ.
    return functools.reduce(torch.add, others) / len(others)


def left(z: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    """Return the feature of the samples that keep it, zeros for the others, divided by 1 - theta; (B, ..., D)."""
    return z.masked_fill(row_mask(~beta, z), 0) / (1 - theta.to(z.device))


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [OPM]
