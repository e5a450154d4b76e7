"""InfoReg: early in training, the encoder of the modality that is ahead is held near its weights of the epoch's start.

Source: Huang, Wei, Yang, Hu, "Adaptive Unimodal Regulation for Balanced Multimodal Information Acquisition", CVPR 2025.
Symbols are those of docs/methods/inforeg.md, which also lists the two versions of the authors' code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from modbalance import (
    Batch,
    ConfigError,
    Method,
    Run,
    Step,
    WindowedMethod,
    ge,
    gradients,
    hookimpl,
    integer,
    one_of,
    option,
    sharding,
    state,
    suggest,
)
from modbalance.method import kept
from modbalance.scores import clearly_greater

Strength = float | Mapping[str, float]
SWITCH = one_of(False, True)


def strengths(value: object) -> str | None:
    """Check for a finite number >= 0, or a mapping from names to such numbers."""
    numbers = [*value.values()] if isinstance(value, Mapping) else [value]
    return (
        None if all(ge(0)(each) is None for each in numbers) else "a finite number >= 0, or a mapping to such numbers"
    )


@attrs.define(eq=False, kw_only=True)
class InfoReg(WindowedMethod):
    """Pulls the encoder of a modality that is ahead towards its weights at the start of the epoch.

    Touches the gradients of that encoder, in epochs in which the trace of the Fisher information still moves, and the
    loss, which gains the losses of all unimodal logits in every epoch. Costs a pass of the head per modality and a copy
    of the encoders; no further encoder pass, no host read in a step.
    """

    name: ClassVar[str] = "inforeg"
    needs = frozenset({"unimodal_logits", "target", "loss_fn"})
    min_modalities = 2
    suits: ClassVar[Mapping[str, str]] = {
        "dominated": "Slows the encoder that is ahead by a pull towards earlier weights."
    }
    step_cost: ClassVar[float | None] = 1.12

    strength: Strength = option(0.95, strengths, "c_i, pull of an encoder, >= 0; a number, or by modality, 0 left out")
    threshold: float = option(0.05, ge(0), "K, smallest relative change of the trace that is regulated, >= 0")
    window: int = option(10, integer(1), "epochs that a trace is compared with")
    unimodal_weight: float = option(1.0, ge(0), "weight of the losses of unimodal logits, >= 0")
    window_of: str = option(
        "first",
        one_of("first", "each", "joint"),
        "whose trace decides: the first modality's, each one's own, or the sum of all",
    )
    gap: str = option("sum", one_of("sum", "mean"), "scores compared: sums over the step's samples, or means")
    against: str = option("mean_others", one_of("mean_others", "best"), "what a score is compared with, for M >= 3")
    trace_of_regulated: bool = option(True, SWITCH, "whether the trace sees the gradient with the pull")

    traces: list[Tensor] = state([])
    sums: Tensor | None = state(None)
    opened: Tensor | None = state(None)
    anchor: dict[str, Tensor] = state({})

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Check the names in `strength`."""
        for name in self.strength if isinstance(self.strength, Mapping) else ():
            if name not in run.modalities:
                raise ConfigError(
                    f"Option `strength` of method `inforeg` names {name!r}. {suggest(name, run.modalities)}"
                )

    @hookimpl
    def modbalance_epoch_start(self, run: Run) -> None:
        """Keep the weights W_i, and decide whether encoders are regulated in this epoch."""
        named = [each for modality in run.modalities for each in run.parameters(modality)]
        self.anchor = {name: parameter.detach().clone() for name, parameter in named}
        self.sums = torch.zeros(len(run.modalities), dtype=torch.float64, device=run.device)
        k = self.change(run)
        self.opened = k > self.threshold
        run.log_each("change", k)
        run.log_each("open", self.opened)
        run.count_each("nonfinite", ~k.isfinite())

    def change(self, run: Run) -> Tensor:
        """Return k_i, the change of the Fisher trace T over the window as a share of its sum; (M,), NaN for T = 0."""
        if not self.traces:
            return torch.ones(len(run.modalities), dtype=torch.float64, device=run.device)
        T = torch.stack(self.traces).to(run.device)
        T = {"first": T[:, :1].expand_as(T), "each": T, "joint": T.sum(1, keepdim=True).expand_as(T)}[self.window_of]
        before = T[-1 - self.window] if len(T) > self.window else 0.0
        return (T[-1] - before) / T[-self.window :].sum(0)  # k = [T(e-1) - T(e-1-w)] / sum_j T(e-j)

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        """Sum the scores s_i of each modality, and count them."""
        s, count = batch.scores(batch.unimodal_logits)
        return {"score": s, "count": count}

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the unimodal logits, which the head learns from, too."""
        if not self.unimodal_weight:
            return {}
        losses = batch.losses(batch.unimodal_logits_live(frozen_head=False))
        batch.run.log_each("loss", losses.values())
        return {"unimodal": self.unimodal_weight * functools.reduce(torch.add, losses.values())}

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Add beta_i (theta_i - W_i) to the gradients of encoders, and measure their squares."""
        assert self.opened is not None
        gap = self.gaps(step)
        # beta_i = c_i exp(tanh(gap_i)) where gap_i > 0 and the window is open
        beta = torch.where(self.opened.to(gap.device) & (gap > 0), self.c(step) * gap.tanh().exp(), 0)
        step.run.log_each("beta", beta)
        squares = []
        for modality, beta_i in zip(step.run.modalities, beta, strict=True):
            named = [(name, p) for name, p in step.run.parameters(modality) if p.grad is not None]
            g = gradients.all_values([p for _, p in named])
            sizes = [p.numel() for _, p in named]
            before = None if self.trace_of_regulated else trace(g, sizes)
            if named:
                pull = [rows_of(p, p.detach() - self.anchor.get(name, p.detach())) for name, p in named]
                pull = sharding.local_values(pull)
                torch._foreach_mul_(pull, beta_i.to(pull[0]))
                torch._foreach_add_(sharding.local_values(g), pull)
            squares.append(trace(g, sizes) if before is None else before)
        step.cache["squares"] = torch.stack([each.to(gap.device) for each in squares])

    def gaps(self, step: Step) -> Tensor:
        """Return gap_i = s_i - mean of the others' s_j, (M,), at most one above 0 with `against="best"`."""
        mean = step.stats["score"] / step.stats["count"]
        step.run.log_each("score", mean)
        # A sum over as many samples for each modality, also where some lack one.
        s = mean * step.stats["count"].amax() if self.gap == "sum" else mean
        others = torch.stack([s.roll(shift) for shift in range(1, len(s))])
        rival = others.nanmean(0) if self.against == "mean_others" else others.nan_to_num(nan=-torch.inf).amax(0)
        return torch.where(clearly_greater(s, rival), s - rival, 0)

    def c(self, step: Step) -> Tensor:
        """Return c_i, (M,)."""
        given, names = self.strength, step.run.modalities
        values = [given.get(name, 0.0) for name in names] if isinstance(given, Mapping) else [given] * len(names)
        return step.stats["score"].new_tensor(values)

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        """Add the squares of this step to the trace; those that are not finite count as 0."""
        assert self.sums is not None
        squares = step.cache["squares"].to(self.sums)
        self.sums = kept(self.sums, self.sums + squares.where(squares.isfinite(), 0))

    @hookimpl
    def modbalance_epoch_end(self, run: Run) -> None:
        """Remember the trace of this epoch."""
        if self.sums is None:
            return
        self.traces = [*self.traces, self.sums][-self.window - 1 :]
        run.log_each("trace", self.sums)
        self.sums = None


def rows_of(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """Return the rows of a tensor that a sparse gradient of the parameter holds, all of them where it is dense."""
    gradient = parameter.grad
    assert gradient is not None
    return whole.index_select(0, gradient._indices()[0]) if gradient.is_sparse else whole


def trace(g: list[Tensor], sizes: list[int]) -> Tensor:
    """Return the sum over weights, tensors of two and more dimensions, of the mean square of the gradient, 0-dim.

    Args:
        g: Gradients of an encoder, of a sparse one its distinct rows.
        sizes: Numbers of elements of the parameters.
    """
    weights = [(each, size) for each, size in zip(g, sizes, strict=True) if each.dim() >= 2]
    if not weights:
        return torch.zeros((), dtype=torch.float64)
    chosen = [each for each, _ in weights]
    squares = gradients.products(chosen, chosen).double()
    return (squares / torch.tensor([size for _, size in weights], dtype=torch.float64, device=squares.device)).sum()


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [InfoReg]
