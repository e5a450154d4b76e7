"""AGM: adaptive gradient modulation by Shapley values.

Source: Li, Li, Hu, Lei, Li, Zhou, "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV
2023, Section 3. Symbols are those of docs/methods/agm.md, which also lists where the authors' code departs from the
paper, and which side each option takes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import factorial
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import (
    Batch,
    ConfigError,
    Method,
    Run,
    Step,
    WindowedMethod,
    between,
    gradients,
    gt,
    hookimpl,
    integer,
    kept,
    one_of,
    option,
    optional,
    state,
)
from modbalance.coalitions import Coalition, choose, factored, full, guard_buffers, joined
from modbalance.scores import clearly_greater, widened
from modbalance_agm.competition import competition_metric as competition_metric

NO_GRADIENT = "masked_pass_grad=False"
HINT = "Pass `coalitions='full'` if this is what you expect."


@attrs.define(eq=False, kw_only=True)
class AGM(WindowedMethod):
    """Scales the gradient of the Shapley output of each modality, its share in the logits.

    Touches the gradients of the whole model, by the chain rule; only the conditional clip edits them. Costs one more
    pass per encoder, in eval mode and with graph, where encoders are independent. No host read.
    """

    name: ClassVar[str] = "agm"
    needs = frozenset({"model", "target"})
    min_modalities = 2
    excluded_hooks = frozenset({"modbalance_features"})
    suits: ClassVar[Mapping[str, str]] = {
        "dominated": "Slows a modality down whose Shapley output does better than it did so far."
    }
    step_cost: ClassVar[float | None] = 2.02
    reduced = frozenset({"score_of_all", "count_of_all", "kappa", "batches"})

    alpha: float = option(1.0, gt(0), "modulation strength, dimensionless, > 0")
    end_epoch: int | None = option(19, optional(integer(0)), "last epoch of the window, 0-based, inclusive")
    after_window: str = option("reset", one_of("reset", "freeze"), "scale after the window: 1, or the last for ever")
    max_gap: float | None = option(10.0, optional(gt(0)), "largest tau - r that counts; None: any", paper=None)
    p_min: float = option(1e-8, between(0, 1), "smallest score whose logarithm is taken, in [0, 1]", paper=0.0)
    include_current: bool = option(False, one_of(True, False), "whether tau includes the current step", paper=True)
    masked_mode: str = option("eval", one_of("eval", "train"), "mode of the masked passes")
    masked_pass_grad: bool = option(True, one_of(True, False), "whether gradients run through the masked passes")
    coalitions: str = option(
        "auto",
        one_of("auto", "factored", "full", "joined"),
        "masked passes: each encoder once, the model per coalition, or the model on all coalitions as one batch",
    )
    recompute: bool = option(
        False, one_of(True, False), "whether masked passes run again in the backward: less memory, more time"
    )
    clip_trigger: float | None = option(
        1.0, optional(gt(0)), "entry of the head's gradient beyond which all is clipped; None: never", paper=None
    )
    clip_norm: float = option(1.0, gt(0), "joint gradient norm after that clip, > 0")

    mean_score: Tensor | None = state(None)
    score_steps: Tensor | None = state(None)
    last_kappa: Tensor | None = state(None)
    form: str = state("auto")
    _chosen: str = attrs.field(default="", init=False, repr=False)
    """The form found in the current step, which counts once the step has happened."""
    _head: tuple[int, list[Tensor]] | None = attrs.field(default=None, init=False, repr=False)
    """The epoch and the weights that the clip watches, which are looked up once per epoch."""

    def __attrs_post_init__(self) -> None:
        WindowedMethod.__attrs_post_init__(self)
        if self.masked_mode == "train" and self.coalitions in ("factored", "joined"):
            raise ConfigError(
                "Option `coalitions` of method `agm` should be 'full' or 'auto' beside masked_mode = 'train', where "
                "the samples of a batch depend on each other. "
                f"Found `coalitions = {self.coalitions!r}`: leave it out."
            )

    def is_active(self, epoch: int) -> bool:
        """Whether scores are gathered: up to the end of the window, and after it where the scale is frozen."""
        return self.after_window == "freeze" or self.end_epoch is None or epoch <= self.end_epoch

    def exemptions(self) -> dict[str, str]:
        """Return the rules of `modbalance.testing` that do not hold with these options."""
        return {"accumulation": "kappa is computed for each micro-batch, before the backward"}

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Check that there is a head for the conditional clip."""
        if self.clip_trigger is not None and not head_weights(run):
            raise ConfigError(
                "Option `clip_trigger` of method `agm` should go with a head, whose weight it watches. Found no matrix "
                "among the parameters of the fusion: name the head in `fusion=`, or pass `clip_trigger=None`."
            )

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        """Sum the scores s_i of the Shapley outputs m_i, and compute the scale kappa_i of this batch."""
        modulates = batch.run.epoch >= self.start_epoch
        with torch.set_grad_enabled(modulates):
            f = self.coalition_outputs(batch)
        m = shapley_outputs(f, batch.run.modalities)
        s, count = batch.scores(m, of=self.surprise)  # sums of -log softmax(m_i)[y]
        sums = {"score": s, "count": count}
        is_over = self.end_epoch is not None and batch.run.epoch > self.end_epoch
        kappa = self.last_kappa
        if not is_over:
            kappa, sums = self.scale(batch.run, sums) if modulates else (None, sums)
        if kappa is None:
            return sums
        batch.cache[self.name] = kappa, f
        batch.run.log_each("kappa", kappa)
        return sums | {"kappa": kappa, "batches": kappa.new_ones(())}

    @hookimpl
    def modbalance_logits(self, batch: Batch) -> Tensor | None:
        """Return the fused logits sum_i m_i = f(N), whose gradient reaches each m_i scaled by kappa_i."""
        if self.name not in batch.cache:
            return None
        kappa, f = batch.cache[self.name]
        weights = coalition_weights(kappa, f, batch.run.modalities)
        logits: Tensor = WeightedGradient.apply(batch.logits.detach(), weights, *f.values())
        if self.masked_mode == "eval" and self.masked_pass_grad and batch.run.model is not None:
            guard_buffers(logits, batch.run.model)
        return logits

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Clip the joint norm, if an entry of the head's weight gradient is too large."""
        if self.clip_trigger is None or step.run.epoch < self.start_epoch:
            return
        if self._head is None or self._head[0] != step.run.epoch:
            self._head = step.run.epoch, head_weights(step.run)
        head = [p for p in self._head[1] if p.grad is not None]
        if not head:
            return
        parameters = [p for p in step.run.optimized_parameters() if p.grad is not None]
        largest = torch.stack([gradients.values(p).abs().amax() for p in head]).amax()
        clip = (self.clip_norm / (gradients.norm(parameters) + 1e-6)).clamp(max=1)
        gradients.scale_(parameters, clip.where(clearly_greater(largest, self.clip_trigger), 1))

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        """Add the scores of this step to their mean, and keep the scale for the epochs after the window."""
        self.form, self._chosen = self._chosen or self.form, ""
        of = "_of_all" if "score_of_all" in step.stats else ""
        s = step.stats[f"score{of}"] / step.stats[f"count{of}"]
        mean_score, score_steps = self.updated_mean(s)
        self.mean_score, self.score_steps = kept(self.mean_score, mean_score), kept(self.score_steps, score_steps)
        step.run.log_each("score", s)
        if "kappa" in step.stats:
            self.last_kappa = kept(self.last_kappa, step.stats["kappa"] / step.stats["batches"])

    def coalition_outputs(self, batch: Batch) -> dict[Coalition, Tensor]:
        """Return f(S), (B, C, ...), of all coalitions but the empty one; that of N, the fused logits, is the last."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.masked_pass_grad):
            f = self.masked_outputs(batch)
        return f | {batch.run.modalities: batch.logits}

    def masked_outputs(self, batch: Batch) -> dict[Coalition, Tensor]:
        """Return f(S) for 1 <= |S| < M, in the form that `coalitions` names or that was found to be exact."""
        form = self.coalitions
        if form == "auto":
            form = self._chosen if batch.index and self._chosen else self.form
        if form == "factored":
            return factored(batch, no_gradient=NO_GRADIENT, recompute=self.recompute)
        if form == "joined":
            return joined(batch, no_gradient=NO_GRADIENT, recompute=self.recompute)
        chooses = form == "auto" and self.masked_mode == "eval"
        f = full(
            batch,
            training=self.masked_mode == "train",
            no_gradient=NO_GRADIENT,
            recompute=self.recompute,
            compiled=not chooses,
        )
        if chooses:
            self._chosen = choose(batch, f, hint=HINT)
        return f

    def surprise(self, probability: Tensor) -> Tensor:
        """Return -log max(p, p_min) of each element, the summand of s_i."""
        return -probability.double().clamp(min=self.p_min).log()

    def scale(self, run: Run, sums: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scale kappa_i of this batch, (M,), 1 where not finite; and the sums over all ranks."""
        score, count = run.sums([sums["score"], sums["count"]])
        s = score / count  # s_i, over all ranks
        history = self.updated_mean(s)[0] if self.include_current else self.mean(s)  # S_i
        tau, r = ratio(torch.stack([history, s]))  # tau_i, r_i
        gap = tau - r
        # kappa_i = exp(alpha min(tau_i - r_i, max_gap))
        kappa = (self.alpha * (gap if self.max_gap is None else gap.clamp(max=self.max_gap))).exp()
        is_sound = is_finite(kappa + s.sum())
        run.count_each("nonfinite", ~is_sound)
        return kappa.where(is_sound, 1), {"score_of_all": score, "count_of_all": count}

    def mean(self, s: Tensor) -> Tensor:
        """Return S_i, the mean of the scores of the steps before this one, (M,); 0 at first."""
        return torch.zeros_like(s) if self.mean_score is None else self.mean_score

    def updated_mean(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return S_i with the scores of step t, (M,), and t; a step whose scores are not finite does not count."""
        counts = is_finite(s.sum())
        t = (s.new_zeros(()) if self.score_steps is None else self.score_steps) + counts
        updated = self.mean(s) * (t - 1) / t + s / t  # S_i <- S_i (t - 1) / t + s_i / t
        return updated.where(counts, self.mean(s)), t


class WeightedGradient(torch.autograd.Function):
    """The fused logits f(N), whose gradient g reaches the logits f(S) of each coalition, times a weight."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, weights: Tensor, *f: Tensor) -> Tensor:
        """Return the total, f(N) without graph."""
        ctx.save_for_backward(weights)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return dL/df(S) = g sum_i kappa_i c_i(S)."""
        (weights,) = ctx.saved_tensors
        g = widened(gradient)
        return None, None, *(weights.to(g.dtype).view(-1, *[1] * g.dim()) * g)


def shapley_weights(coalitions: Iterable[Coalition], i: str, count: int) -> list[float]:
    """Return c_i(S) by coalition, of ``count`` modalities; the empty coalition cancels in the sum over i."""
    w = [factorial(k) * factorial(count - k - 1) / factorial(count) for k in range(count)]  # k! (M - k - 1)! / M!
    return [w[len(S) - 1] if i in S else -w[len(S)] for S in coalitions]


@torch.no_grad()
def shapley_outputs(f: Mapping[Coalition, Tensor], modalities: Sequence[str]) -> dict[str, Tensor]:
    """Return m_i = sum_S c_i(S) f(S) by modality, (B, C, ...), which add up to f(N); without graph.

    For M = 2, m_i = (f(N) - f(j) + f(i)) / 2.
    """
    outputs = [widened(f_S) for f_S in f.values()]
    c = {i: shapley_weights(f, i, len(modalities)) for i in modalities}
    return {i: torch.stack(torch._foreach_mul(outputs, c_i)).sum(0) for i, c_i in c.items()}


def coalition_weights(kappa: Tensor, coalitions: Collection[Coalition], modalities: Sequence[str]) -> Tensor:
    """Return sum_i kappa_i c_i(S) by coalition: the share of dL/df(N) that reaches f(S)."""
    c = [c_i_S for i in modalities for c_i_S in shapley_weights(coalitions, i, len(modalities))]
    terms = torch._foreach_mul([kappa_i for kappa_i in kappa for _ in coalitions], c)
    return torch.stack(terms).view(len(modalities), -1).sum(0)


def ratio(s: Tensor) -> Tensor:
    """Return the ratio r_i of scores s_i, (..., M): large for a modality that is ahead."""
    others = (s.sum(-1, keepdim=True) - s) / (s.shape[-1] - 1)
    return (others - s).exp()  # r_i = exp(mean_{j != i} s_j - s_i)


def is_finite(x: Tensor) -> Tensor:
    """Return where ``x`` is a finite number, in half the operations of `torch.isfinite`."""
    return x - x == 0


def head_weights(run: Run) -> list[Tensor]:
    """Return the weights whose rows are the outputs: the last matrix of the fusion, and those with as many rows.

    A fusion that is a callable has no parameters of its own: the last matrix outside of the encoders counts then.
    """
    encoders = {id(p) for name in run.modalities for module in run.encoders(name) for p in module.parameters()}
    roots = run.fusion_modules or ([] if run.model is None else [run.model])
    matrices = [p for root in roots for p in root.parameters() if p.dim() >= 2 and id(p) not in encoders]
    return [p for p in matrices if len(p) == len(matrices[-1])]


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [AGM]
