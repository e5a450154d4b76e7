"""CGGM: classifier-guided gradient modulation.

Source: Guo, Jin, Chen, Zhao, "Classifier-guided Gradient Modulation for Enhanced Multimodal Learning", NeurIPS 2024.
Deviations of the authors' code from the paper, and which side each option takes: docs/methods/cggm.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from modbalance import (
    Batch,
    CheckpointError,
    ConfigError,
    Method,
    ObservationError,
    Run,
    Step,
    gradients,
    hookimpl,
    option,
    state,
)
from modbalance.method import between, ge, gt, one_of
from modbalance.scores import clearly_greater
from modbalance_cggm.checks import is_head, is_interval, is_maker, is_probes
from modbalance_cggm.guides import Guides, Kind, MakeOptimizer, build, feature_size, own_draws
from modbalance_cggm.heads import Sizes, find_head, last_layer, matrix, reads_concatenation, slices, weight_of
from modbalance_cggm.metrics import BUILT, Metric, check_metric

EPS = 1e-8
LARGE = 100
WARNING = (
    f"|B_i| of CGGM went above {LARGE}, as often as `cggm/large/<modality>` says: the improvements of the modalities "
    "nearly cancelled out. `clip_grad_norm=` bounds such a step, `coeff_clip=` bounds B_i; larger batches and "
    "`metric_ema=` make it rarer."
)


@attrs.define(eq=False, kw_only=True)
class CGGM(Method):
    """Scales each encoder's gradients by how much the other modalities improved, and turns the head towards them.

    Touches the gradients of the encoders, and that of the head's weight. Trains one probe per modality on detached
    features, outside of the user's loss. Needs a forward and a backward of the probes: no host read.
    """

    name: ClassVar[str] = "cggm"
    needs = frozenset({"features", "loss_fn"})
    min_modalities = 2
    preset_clips: ClassVar[Mapping[str, float]] = {"official": 0.8}

    rho: float = option(1.3, gt(0), "scale of the modulated gradients, dimensionless, > 0")
    lam: float = option(0.2, ge(0), "weight of the direction term l_gm, dimensionless, >= 0; 0 needs no head")
    probes: Kind = option("linear", is_probes, "'linear', 'mlp', 'transformer', modules by modality, or a factory")
    probe_optimizer: MakeOptimizer | None = option(None, is_maker, "parameters -> optimizer; None: Adam, lr 5e-4")
    metric: str | Metric = option(
        "accuracy", one_of(*BUILT, or_callable=True), f"{', '.join(map(repr, BUILT))}, or a callable -> (sum, count)"
    )
    head: str | nn.Module | None = option(None, is_head, "layer to compare probes with; None: the fusion's last")
    direction: str = option("weight", one_of("weight", "gradient"), "what is compared of last layers", paper="gradient")
    direction_delay: int = option(1, one_of(0, 1), "steps by which the direction term comes late", paper=0)
    coeff_clip: tuple[float, float] | None = option(None, is_interval, "bounds (low, high) of B_i; None: none")
    metric_ema: float = option(0.0, between(0, 1), "share of the old metric in its running mean, in [0, 1]")
    probe_eval: bool = option(False, one_of(False, True), "whether metrics are taken from probes in eval mode")

    epsilon: Tensor | None = state(None)
    b: Tensor | None = state(None)
    pull: Tensor | None = state(None)
    sizes: Sizes = state({})
    outputs: int = state(0)

    _run: Run | None = attrs.field(default=None, init=False)
    _head: nn.Module | None = attrs.field(default=None, init=False)
    _guides: Guides | None = attrs.field(default=None, init=False)
    _slices: Sizes = attrs.field(factory=dict, init=False)

    # The paper's equations

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        """Run each probe: its metric, and the gradient of its task loss, as sums over samples."""
        guides, features = self._ready(batch), batch.require_features()
        sums: dict[str, Tensor] = {}
        with torch.enable_grad(), torch.autocast(batch.logits.device.type, enabled=False), own_draws(batch):
            for name in batch.run.modalities:
                sums |= guides.observe(batch, name, features[name], self.metric, self.probe_eval)
        batch.cache["sums"] = sums
        return sums

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return rho * B_i."""
        step.cache["epsilon"], step.cache["b"] = epsilon, b = self.balance(step.run, step.stats)
        for name, epsilon_i, b_i in zip(step.run.modalities, epsilon, b, strict=True):
            step.run.log(f"metric/{name}", epsilon_i)
            step.run.log(f"probe_loss/{name}", step.stats[f"loss/{name}"] / step.stats[f"samples/{name}"])
            step.run.count(f"large/{name}", clearly_greater(b_i.abs(), LARGE), WARNING)
        return dict(zip(step.run.modalities, self.rho * b, strict=True))

    def balance(self, run: Run, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the metrics epsilon_i and B_i = (S - Delta_i) / S, S = sum_j Delta_j + 1e-8; (M,) fp64 each."""
        measured = torch.stack([sums[f"metric/{name}"] / sums[f"count/{name}"] for name in run.modalities])
        before = torch.zeros_like(measured) if self.epsilon is None else self.epsilon
        epsilon = self.metric_ema * before + (1 - self.metric_ema) * measured
        delta = epsilon - before
        total = sum(delta.unbind(), start=torch.zeros_like(delta[0])) + EPS
        b = (total - delta) / total
        return epsilon, b if self.coeff_clip is None else b.clamp(*self.coeff_clip)

    def align(self, w: Tensor, u: Sequence[Tensor], b: Tensor) -> tuple[Tensor, Tensor]:
        """Return l_gm = 1/M (sum_i |B_i| - sum_i B_i cos(u_i, w)), 0-dim, and its derivative by w, (C, K).

        Args:
            w: Weight of the head, or the gradient of the task loss by it, (C, K).
            u: The same of the last layer of each probe, (C, K) or (C, D_i) where w is sliced.
            b: B_i, (M,).
        """
        l_gm, derivative = b.new_zeros(()), torch.zeros_like(w)
        for w_i, slot, u_i, b_i in zip(self._parts(w), self._parts(derivative), u, b, strict=True):
            length = w_i.norm().clamp(min=EPS)
            unit_w, unit_u = w_i / length, u_i / u_i.norm().clamp(min=EPS)
            c = (unit_w * unit_u).sum()
            turn = b_i * (unit_u - c * unit_w) / length
            is_finite = (b_i * c).isfinite()  # a probe that went astray must not take the head along
            l_gm = l_gm + (b_i.abs() - b_i * c).where(is_finite, 0) / len(b)
            slot.sub_(turn.where(is_finite, 0) / len(b))
        return l_gm, derivative

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Add lam * dl_gm/dW, W the head's weight, in closed form: that of the previous step, or of this one."""
        if self._head is None or self.direction != "weight":
            return
        u = [matrix(layer) for layer in self._lasts().values()]
        l_gm, derivative = self.align(self._weight.flatten(1), u, step.cache["b"])
        step.run.log("l_gm", l_gm)
        step.cache["pull"] = self.lam * derivative.view_as(self._weight)
        pull = self.pull if self.direction_delay else step.cache["pull"]
        if pull is not None and self._weight.grad is not None:
            gradients.values(self._weight).add_(pull)

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return lam * l_gm of the gradients of this batch, which the user's backward really differentiates."""
        if self._head is None or self.direction != "gradient" or not self._weight.requires_grad:
            return {}
        run, count = batch.run, len(batch.logits)
        w = self._live_gradient(batch)
        sums = batch.cache["sums"] | {"head": w.detach() * count, "all": w.new_full((), count)}
        sums = dict(zip(sums, run.sums(list(sums.values())), strict=True))
        b = self.b if self.direction_delay else self.balance(run, sums)[1]
        if b is None:
            return {}
        u = [self._built.last_gradient(sums, name, weight_of(layer)) for name, layer in self._lasts().items()]
        l_gm, derivative = self.align(sums["head"] / sums["all"], u, b)
        # Of l_gm as a function of the joint gradient, only this rank's share of the gradient has a graph here.
        share = (derivative * w).sum()
        return {"l_gm": self.lam * (l_gm.to(share) + (share - share.detach()))}

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        """Keep metrics, B_i and the derivative; step the probes by the gradients of their own losses."""
        epsilon = step.cache["epsilon"]
        before = torch.zeros_like(epsilon) if self.epsilon is None else self.epsilon
        self.epsilon = epsilon.where(epsilon.isfinite(), before)
        self.b = step.cache["b"].nan_to_num(1.0)
        self.pull = step.cache.get("pull")
        self._built.step(step.stats)

    # The probes

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Find the head; build the probes where their sizes are known, else on the first batch."""
        self._run = run
        self._head = find_head(run, self.head) if self.lam > 0 else None
        sizes = dict(run.feature_sizes)
        if isinstance(self.probes, Mapping):
            self._adopt({}, 0)
        elif sizes and self._head is not None and self.head is None:
            self._adopt(sizes, len(self._weight))

    def _ready(self, batch: Batch) -> Guides:
        """Return the probes; on the first batch, build them if need be and compare sizes."""
        if batch.task_loss is None:
            raise ObservationError(
                "Method `cggm` trains its probes with the task loss. Found a loss that is computed already: use "
                "`criterion = opt.criterion(loss_fn)` and `criterion(logits, target)`, not `opt.observe`."
            )
        features, run = batch.require_features(), batch.run
        check_metric(self.metric, run.loss_fn)
        if not self.sizes:
            outputs = batch.logits.shape[1] if batch.logits.dim() > 1 else 1
            self._adopt({name: feature_size(run, features[name]) for name in run.modalities}, outputs)
        self._built.follow(features)
        return self._built

    def _adopt(self, sizes: Sizes, outputs: int) -> None:
        """Take probes for these sizes, built now unless they are there, and compare their shapes with the head's."""
        guides = self._guides or self._made(sizes, outputs)
        run, head = self._attached, self._head
        if head is not None:
            lasts = {name: last_layer(probe, f"The probe of {name!r}") for name, probe in guides.modules.items()}
            self._slices = slices(run, head, lasts, sizes)
        if self._guides is None:
            guides.share(run)
        self._guides, self.sizes, self.outputs = guides, sizes, outputs

    def _made(self, sizes: Sizes, outputs: int) -> Guides:
        run, widths = self._attached, sizes
        if self._head is not None and not reads_concatenation(run, self._head, sum(sizes.values())):
            widths = dict.fromkeys(sizes, self._weight.flatten(1).shape[1])
        return build(run, self.probes, self.probe_optimizer, sizes, widths, outputs)

    @property
    def _attached(self) -> Run:
        assert self._run is not None
        return self._run

    @property
    def _built(self) -> Guides:
        assert self._guides is not None
        return self._guides

    @property
    def _weight(self) -> nn.Parameter:
        assert self._head is not None
        return weight_of(self._head)

    def _lasts(self) -> dict[str, nn.Module]:
        return {name: last_layer(probe, "The probe") for name, probe in self._built.modules.items()}

    def _parts(self, w: Tensor) -> Sequence[Tensor]:
        """Return what each probe is compared with: views of ``w``, (C, K), whole or by columns."""
        return torch.split(w, list(self._slices.values()), 1) if self._slices else [w] * len(self._built.modules)

    def _live_gradient(self, batch: Batch) -> Tensor:
        """Return the gradient of the task loss by the head's weight, (C, K), itself differentiable."""
        assert batch.task_loss is not None
        if not len(batch.logits):
            return torch.zeros_like(self._weight.flatten(1))
        loss = batch.task_loss(batch.logits)
        (gradient,) = torch.autograd.grad(loss, self._weight, create_graph=True, allow_unused=True)
        if gradient is None:
            raise ConfigError("Option `head` should name a layer that the loss depends on. Found one that it does not.")
        return gradient.flatten(1)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the declared state, and the probes with their optimizer; ``None`` before they are built."""
        return Method.state_dict(self) | {"guides": self._guides and self._guides.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; probes that no batch has shaped yet are built for it."""
        guides = saved["guides"]
        if guides is None:
            self._guides = None if self.sizes else self._guides
        else:
            self._adopt(dict(saved["sizes"]), saved["outputs"])
            self._built.load_state_dict(guides)
        Method.load_state_dict(self, {name: value for name, value in saved.items() if name != "guides"})

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Raise a CheckpointError unless ``saved`` is of a run with these probes."""
        Method.check_state(self, {name: value for name, value in saved.items() if name != "guides"})
        guides = saved.get("guides")
        if guides is not None and not (self._guides or self._made(saved["sizes"], saved["outputs"])).fits(guides):
            raise CheckpointError(
                "The saved probes of method `cggm` should have the shapes of those that `probes=` asks for. They have "
                "not: build BalancedOptimizer with the `probes=` of the run that was saved."
            )


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [CGGM]
