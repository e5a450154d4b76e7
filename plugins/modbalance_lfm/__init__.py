"""LFM: a further loss pulls the predictions of modalities together, strongly at first, with a weight that fades.

Source: Yang, Wan, Jiang, Xu, "Facilitating Multimodal Classification via Dynamically Learning Modality Gap", NeurIPS
2024. Symbols are those of docs/methods/lfm.md, which also lists quirks of the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import (
    Batch,
    ConfigError,
    EpochData,
    Method,
    ObservationError,
    Run,
    between,
    ge,
    gt,
    hookimpl,
    integer,
    one_of,
    option,
    optional,
    sharding,
    state,
    suggest,
)
from modbalance.loaders import rng_kept
from modbalance.method import Preset
from modbalance_lfm import alignment, probe

FITTED = 2.04623704e-1, 3.35472727e-3, 1.22989557e-4, -2.92947416e-6, 2.23835486e-8, -5.39717505e-11
"""Coefficients of a_0 as a polynomial in the epoch, fitted by the authors to a run of 200 epochs."""
EPOCHS = 200
HALVING = 20  # epochs between two halvings of lambda


def bounds(value: Any) -> str | None:
    """Check for two finite numbers, the lower one first."""
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    is_valid = is_pair and all(ge(-math.inf)(each) is None for each in value) and value[0] <= value[1]
    return None if is_valid else "a pair of numbers (low, high), low <= high"


def batch_of_data(value: Any) -> str | None:
    """Check for a batch as loaders yield it."""
    return None if isinstance(value, list | tuple | Mapping) else "a batch: a tuple, a list or a mapping"


def path(value: Any) -> str | None:
    """Check for a path of a parameter."""
    return None if isinstance(value, str) else "the path of a parameter, such as 'audio_net.conv1.weight'"


def function(value: Any) -> str | None:
    """Check for a callable."""
    return None if callable(value) else "a callable (model, batch) -> (logits, target)"


@attrs.define(eq=False, kw_only=True)
class LFM(Method):
    """Adds the distance between the predictions of modalities to the loss, and weighs both by a schedule.

    Touches the loss, and with `fused="mean"` the logits, which become the mean of the unimodal ones, in evaluation too.
    Costs head-sized operations; no further pass, no host read in a step. `alpha="learned"` costs a forward and three
    backwards on a few samples once an epoch.
    """

    name: ClassVar[str] = "lfm"
    needs = frozenset({"unimodal_logits", "loss_fn", "categories"})
    min_modalities = 2
    presets: ClassVar[tuple[Preset, ...]] = ("official",)
    excluded_hooks = frozenset({"modbalance_features"})  # its losses reach encoders past the features of the fusion
    acts_in_eval = True
    step_cost: ClassVar[float | None] = 1.00

    alpha: str = option(
        "fitted", one_of("fitted", "learned", "heuristic"), "weight a_1: the authors' polynomial, learned, or exp(-r e)"
    )
    alpha_epochs: int = option(200, integer(1), "epochs of the training that the fitted polynomial is stretched to")
    alpha_clip: tuple[float, float] | None = option(
        None, optional(bounds), "bounds of a_1; None: none for fitted at 200 epochs, (0, 1) at others, else (.05, .95)"
    )
    alpha_start: float = option(0.95, between(0, 1), "a_1 before the first update of the learned rule, in [0, 1]")
    alpha_lr: float = option(1e-4, ge(0), "lambda, step of the learned rule, >= 0, halved every 20 epochs")
    alpha_rate: float = option(0.3, gt(0), "r of the heuristic rule, 1 / epoch, > 0")
    alpha_parameter: str | None = option(
        None, optional(path), "parameter of the learned rule; None: the first one of the first modality's encoder"
    )
    divergence: str = option("reversed", one_of("reversed", "js"), "distance A: of the mean to both, or Jensen-Shannon")
    pairs: str = option("sum", one_of("sum", "mean"), "A over pairs of modalities, for M >= 3")
    fused: str = option(
        "mean", one_of("mean", "model"), "logits of the task loss: mean of unimodal ones, or the model's"
    )
    probe: Any = option(None, optional(batch_of_data), "batch of the learned rule; None: the first one of opt.begin()")
    probe_forward: Callable[..., Any] | None = option(
        None, optional(function), "(model, batch) -> (logits, target); None: the one of opt.begin(), or the default"
    )
    probe_mode: str = option(
        "official",
        one_of("official", "eval"),
        "first pass of the probe as the modules are, buffers move; or all in eval",
    )

    a1: Tensor | None = state(None)
    samples: list[Any] = state([])

    _parameter: Tensor | None = attrs.field(default=None, init=False, repr=False)
    _has_warned: bool = attrs.field(default=False, init=False, repr=False)

    def starts_before_forward(self) -> bool:
        """Whether the probe has to run before the first forward of an epoch."""
        return self.alpha == "learned"

    def exemptions(self) -> Mapping[str, str]:
        """Return the rules of `modbalance.testing` that do not hold with these options."""
        if self.alpha != "learned" or self.alpha_parameter is not None:
            return {}
        return {"order_of_modalities": "the learned rule looks at the first parameter of the first modality's encoder"}

    # The loss

    @hookimpl
    def modbalance_logits(self, batch: Batch) -> Tensor | None:
        """Return the mean of the unimodal logits, which the task loss K is taken of."""
        if self.fused == "model":
            return None
        batch.cache["logits"] = o = batch.unimodal_logits_live(frozen_head=False)
        return alignment.fused(o, batch.present)

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return what makes L = 2 (a_0 K + a_1 A) of the task loss K; a_0 K + a_1 A for the heuristic rule."""
        K = batch.loss
        assert K is not None
        A = self.distance(batch)
        a0, a1 = self.weights(batch.run)
        batch.run.log("alignment", A.detach())
        factor = 1 if self.alpha == "heuristic" else 2
        return {"task": scaled(K, factor * a0 - 1), "alignment": scaled(A, factor * a1)}

    def distance(self, batch: Batch) -> Tensor:
        """Return A, 0-dim, of the unimodal logits of a batch.

        Raises:
            ConfigError: The loss is one of numbers, or there are no classes.
        """
        o = batch.cache.get("logits") or batch.unimodal_logits_live(frozen_head=False)
        loss_fn, logits = batch.run.loss_fn, next(iter(o.values()))
        kind = batch.kind
        batch.require_kind("classes", "labels", what="compares the distributions that modalities predict")
        if kind == "classes" and (logits.dim() < 2 or logits.shape[1] < 2):
            raise ConfigError(
                "Method `lfm` compares distributions over classes, dim 1 of the logits. Found logits of shape "
                f"{tuple(logits.shape)}: for labels pass `score='binary'` or 'multilabel' to `opt.criterion`."
            )
        counts = alignment.counted(batch.target, logits, loss_fn) if kind == "classes" else None
        return alignment.alignment(o, kind, self.divergence, self.pairs, counts, batch.present)

    def weights(self, run: Run) -> tuple[Tensor | float, Tensor | float]:
        """Return a_0 and a_1 of the current epoch, which add up to 1."""
        if self.alpha == "learned":
            learned = self.current(run)
            return 1 - learned, learned
        if self.alpha == "heuristic":
            a1 = math.exp(-self.alpha_rate * run.epoch)
        else:
            e = min(run.epoch, self.alpha_epochs - 1) * EPOCHS / self.alpha_epochs
            a1 = 1 - math.fsum(c * e**k for k, c in enumerate(FITTED))
        if (clip := self.clip()) is not None:
            a1 = min(max(a1, clip[0]), clip[1])
        return 1 - a1, a1

    def clip(self) -> tuple[float, float] | None:
        """Return the bounds of a_1, ``None``: none."""
        if self.alpha_clip is not None:
            low, high = self.alpha_clip
            return low, high
        if self.alpha != "fitted":
            return 0.05, 0.95
        return None if self.alpha_epochs == EPOCHS else (0.0, 1.0)

    def current(self, run: Run) -> Tensor:
        """Return the learned a_1, 0-dim."""
        if self.a1 is None:
            return torch.tensor(self.alpha_start, dtype=torch.float64, device=run.device)
        return self.a1.to(run.device)

    # The learned weight

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Find the parameter of the learned rule."""
        if self.alpha != "learned":
            return
        if run.model is None:
            raise ConfigError(
                'Method `lfm` with `alpha="learned"` runs the model on a probe. Found no model: pass `model=`, '
                '`modalities=` and `fusion=` to BalancedOptimizer, or `alpha="fitted"`.'
            )
        if any(sharding.is_sharded(parameter) for parameter in run.model.parameters()):
            raise ConfigError(
                'Method `lfm` with `alpha="learned"` differentiates twice. Found sharded parameters, which torch '
                'cannot differentiate so: pass `alpha="fitted"`.'
            )
        if self.alpha_parameter is None:
            return
        named = dict(run.model.named_parameters())
        if self.alpha_parameter not in named:
            raise ConfigError(
                f"Option `alpha_parameter` of method `lfm` names no parameter: {self.alpha_parameter!r}. "
                f"{suggest(self.alpha_parameter, named)}"
            )
        self._parameter = named[self.alpha_parameter]

    @hookimpl
    def modbalance_begin(self, run: Run, data: EpochData) -> None:
        """Keep the first half of the first batch, of the validation data where these are given, as the probe."""
        loader = data.train if data.val is None else data.val
        if self.alpha != "learned" or self.probe is not None or loader is None:
            return
        with rng_kept([loader], run.device):
            drawn = next(iter(loader), None)
        if drawn is None:
            raise ObservationError("Method `lfm` needs a batch as its probe. Found none in the loader of `opt.begin`.")
        self.samples = [probe.first_half(run, drawn)]

    @hookimpl
    def modbalance_epoch_start(self, run: Run, epoch: int) -> None:
        """Update the learned weight; warn of epochs that the fitted one does not know."""
        if self.alpha == "learned":
            self.update(run, epoch)
        elif self.alpha == "fitted" and epoch >= self.alpha_epochs and not self._has_warned:
            self._has_warned = True
            run.warn(
                f"Method `lfm` has weights for {self.alpha_epochs} epochs, and goes on with the last one in epoch "
                f"{epoch}. Set `alpha_epochs` to the number of epochs of the training."
            )
        run.log("weight", self.weights(run)[1])

    def update(self, run: Run, epoch: int) -> None:
        """Take a step of the learned rule: a_1 <- clip(a_1 - lambda h)."""
        rate = self.alpha_lr * 0.5 ** (epoch // HALVING)
        old, h = self.current(run), self.gradient(run)
        is_finite = h.isfinite()
        run.log("gradient", h)
        run.count("nonfinite", ~is_finite)
        clip = self.clip()
        assert clip is not None
        self.a1 = torch.where(is_finite, (old - rate * h).clamp(*clip), old)

    def gradient(self, run: Run) -> Tensor:
        """Return h, 0-dim, on the probe, with the present weights."""
        model = run.model
        assert model is not None
        is_first = self.a1 is None and self.probe_mode == "official"
        with probe.twice_differentiable(model), torch.enable_grad():
            batch = run.run_model(
                self.probe_samples(run),
                self.probe_forward or run.forward,
                training=None if is_first else False,
                keep_buffers=is_first,
            )
            if batch.task_loss is None:
                raise ObservationError(
                    'Method `lfm` with `alpha="learned"` takes the loss of its probe before the first forward. Found '
                    "none: call `opt.criterion(loss_fn)` before the training."
                )
            new = self.modbalance_logits(batch)
            K, A = batch.task_loss(batch.logits if new is None else new), self.distance(batch)
            a0, a1 = self.weights(run)
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            first = probe.first_trained(run, model) if self._parameter is None else self._parameter
            h = probe.second_derivative(K, scaled(K, a0) + scaled(A, a1), parameters, first)
        return h.detach().double()

    def probe_samples(self, run: Run) -> Any:
        """Return the samples of the probe.

        Raises:
            ObservationError: There are none.
        """
        if not self.samples and self.probe is not None:
            self.samples = [probe.first_half(run, self.probe)]
        if not self.samples:
            raise ObservationError(
                'Method `lfm` with `alpha="learned"` needs a probe before the first forward. Found none: call '
                "`opt.begin(val=loader)` or `opt.begin(train=loader)`, or pass a batch in `probe=`."
            )
        return self.samples[0]


def scaled(loss: Tensor, weight: Tensor | float) -> Tensor:
    """Return a loss times a weight, in the type of the loss."""
    return loss * (weight.to(loss) if isinstance(weight, Tensor) else weight)


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [LFM]
