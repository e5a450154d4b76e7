"""CGGM: classifier-guided gradient modulation.

Source: Guo, Jin, Chen, Zhao, "Classifier-guided Gradient Modulation for Enhanced Multimodal Learning", NeurIPS 2024.
The paper's classifiers f_i are called probes here. Symbols are those of docs/methods/cggm.md, which also lists where
the authors' code departs from the paper, and which side each option takes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
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
    between,
    ge,
    gradients,
    gt,
    hookimpl,
    kept,
    one_of,
    option,
    sharding,
    state,
)
from modbalance.auxiliary import batch_rng
from modbalance.scores import clearly_greater
from modbalance_cggm.heads import (
    METRICS,
    Head,
    Metric,
    Sizes,
    check_metric,
    is_head,
    is_metric,
    last_layer,
    matrix,
    weight_of,
)
from modbalance_cggm.probes import (
    Kind,
    MakeOptimizer,
    Probes,
    default_optimizer,
    feature_size,
    is_maker,
    is_probes,
    maker,
)

EPS = 1e-8
LARGE = 100
WARNING = (
    f"|B_i| of CGGM went above {LARGE}, as often as `cggm/large/<modality>` counts: the improvements of the modalities "
    "nearly cancelled out. `coeff_clip=` bounds B_i, and `clip_grad_norm=` such a step, but not with "
    '`apply="update"`; larger batches and '
    "`metric_ema=` make it rarer."
)


def is_interval(value: Any) -> str | None:
    """Check for a pair of numbers in ascending order."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    return None if value is None or (is_pair and value[0] <= value[1]) else "None or a pair (low, high), low <= high"


@attrs.define(eq=False, kw_only=True)
class CGGM(Method):
    """Scales each encoder's gradients by how much the other modalities improved, and turns the head towards them.

    Touches the gradients of the encoders, and that of the head's weight. Trains one probe per modality on detached
    features, outside of the user's loss. Costs a forward and a backward of the probes; no host read.
    """

    name: ClassVar[str] = "cggm"
    needs = frozenset({"features", "loss_fn"})
    min_modalities = 2
    suits: ClassVar[Mapping[str, str]] = {"starved": "Speeds the encoder up whose classifier improves least."}
    step_cost: ClassVar[float | None] = 1.05
    preset_clips: ClassVar[Mapping[str, float]] = {"official": 0.8}

    rho: float = option(1.3, gt(0), "scale of the modulated gradients, dimensionless, > 0")
    lam: float = option(0.2, ge(0), "weight of the direction term l_gm, dimensionless, >= 0; 0 needs no head")
    probes: Kind = option("linear", is_probes, "'linear', 'mlp', 'transformer', modules by modality, or a factory")
    probe_optimizer: MakeOptimizer | None = option(None, is_maker, "parameters -> optimizer; None: Adam, lr 5e-4")
    metric: str | Metric = option(
        "accuracy", is_metric, f"{', '.join(map(repr, METRICS))}, or a callable (logits, target) -> (sum, count)"
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

    _run: Run | None = attrs.field(default=None, init=False, repr=False)
    _head: Head | None = attrs.field(default=None, init=False, repr=False)
    _built: Probes | None = attrs.field(default=None, init=False, repr=False)
    _last_layers: dict[str, nn.Module] = attrs.field(factory=dict, init=False, repr=False)

    def update_refusal(self) -> None:
        """None: rho B_i goes to the update; the direction term is one of the loss, of the head, and stays in it."""

    def exemptions(self) -> dict[str, str]:
        """Return the rules of `modbalance.testing` that do not hold with these options."""
        named = {"renaming": "the initial weights of a probe depend on the name of its modality"}
        if self.direction == "gradient":
            named["accumulation"] = "gradients of the head are compared for each micro-batch, before the backward"
        if self.probes == "transformer":
            drawn = "dropout of the probes is drawn for one micro-batch and modality after the other"
            named |= {"accumulation": drawn, "order_of_modalities": drawn}
        return named

    # The paper's equations

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        """Run the probes: their metrics, and the gradients of their task losses, as sums over samples."""
        probes = self._ready(batch)
        draws = batch_rng(batch) if probes.may_draw else nullcontext()
        with torch.enable_grad(), torch.autocast(batch.logits.device.type, enabled=False), draws:
            sums = probes.observe(batch, self.metric, self.probe_eval)
        batch.cache["sums"] = sums
        return sums

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return rho B_i, by which the gradients of encoder i are scaled."""
        step.cache["epsilon"], step.cache["b"] = epsilon, b = self.balance(step.stats)
        step.run.log_each("metric", epsilon.unbind())
        step.run.log_each("probe_loss", (step.stats["loss"] / step.stats["samples"]).unbind())
        step.run.count_each("large", clearly_greater(b.abs(), LARGE), WARNING)
        return dict(zip(step.run.modalities, (self.rho * b).unbind(), strict=True))  # g <- rho B_i g

    def balance(self, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the metrics epsilon_i and the coefficients B_i of this step; (M,), double precision each."""
        measured = sums["metric"] / sums["count"]
        before = torch.zeros_like(measured) if self.epsilon is None else self.epsilon
        epsilon = measured.lerp(before, self.metric_ema)
        delta = epsilon - before  # Delta_i = epsilon_i(t) - epsilon_i(t-1)
        total = functools.reduce(torch.add, delta.unbind()) + EPS  # S = sum_j Delta_j + 1e-8
        b = (total - delta) / total  # B_i = (S - Delta_i) / S
        return epsilon, b if self.coeff_clip is None else b.clamp(*self.coeff_clip)

    def align(self, head: Head, w: Tensor, u: Sequence[Tensor], b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the direction term l_gm, 0-dim, and its derivative by w, (C, K).

        Args:
            head: The head.
            w: Its weight, or the gradient of the task loss by it, (C, K).
            u: The same of the last layer of each probe, (C, K) or (C, D_i) where w is sliced.
            b: B_i, (M,).
        """
        # Lists over the modalities, whose parts may have different widths: one operation for each line.
        parts, count = head.parts(w, len(b)), len(b)
        lengths = torch._foreach_clamp_min(torch._foreach_norm([*parts, *u]), EPS)
        units = torch._foreach_div([*parts, *u], lengths)
        unit_w, unit_u = units[:count], units[count:]
        c = [product.sum() for product in torch._foreach_mul(unit_w, unit_u)]  # c_i = cos(u_i, w)
        bc = b * torch.stack(c)
        across = torch._foreach_sub(unit_u, torch._foreach_mul(unit_w, c))
        turn = torch._foreach_div(torch._foreach_mul(across, b.unbind()), lengths[:count])
        is_bad = bc * 0 != 0  # a probe that diverged must not spoil the head
        terms = (b.abs() - bc).masked_fill(is_bad, 0) / count
        l_gm = functools.reduce(torch.add, terms.unbind())  # 1/M (sum_i |B_i| - sum_i B_i c_i)
        sound = [turn_i.masked_fill(bad, 0) for turn_i, bad in zip(turn, is_bad.unbind(), strict=True)]
        derivative = torch.zeros_like(w)
        for slot, turn_i in zip(head.parts(derivative, count), torch._foreach_div(sound, count), strict=True):
            slot.sub_(turn_i)  # dl_gm/dw = -1/M sum_i B_i (u_i / |u_i| - c_i w / |w|) / |w|
        return l_gm, derivative

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Add the gradient of lam * l_gm, of the previous step or of this one, to that of the head's weight W."""
        head = self._head
        if head is None or self.direction != "weight":
            return
        u = [matrix(layer) for layer in self._last_layers.values()]
        w = sharding.whole(head.weight).flatten(1)
        l_gm, derivative = self.align(head, w, u, step.cache["b"])
        step.run.log("l_gm", l_gm)
        step.cache["pull"] = self.lam * derivative.view(head.weight.shape)
        pull = self.pull if self.direction_delay else step.cache["pull"]
        if pull is not None and head.weight.grad is not None:
            values = gradients.values(head.weight)
            sharding.local(values).add_(sharding.local_part(pull, values))  # dL/dW <- dL/dW + lam dl_gm/dW

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return lam * l_gm, c_i of the gradients of this batch: a term of the loss, differentiated with it."""
        head = self._head
        if head is None or self.direction != "gradient" or not head.weight.requires_grad:
            return {}
        run, count = batch.run, len(batch.logits)
        w = head.gradient(batch)
        sums = batch.cache["sums"] | {"head": w.detach() * count, "all": w.new_full((), count)}
        sums = dict(zip(sums, run.sums(list(sums.values())), strict=True))
        b = self.b if self.direction_delay else self.balance(sums)[1]
        if b is None:
            return {}
        means = self._probes.mean_gradients(sums)
        u = [self._probes.last_gradient(means, name, weight_of(layer)) for name, layer in self._last_layers.items()]
        l_gm, derivative = self.align(head, sums["head"] / sums["all"], u, b)
        # Of the joint gradient, only the share of this rank has a graph here.
        share = (derivative * w).sum()
        return {"l_gm": self.lam * (l_gm.to(share) + (share - share.detach()))}

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        """Keep epsilon_i, B_i and the derivative of l_gm; step the probes by the gradients of their own losses."""
        epsilon = step.cache["epsilon"]
        before = torch.zeros_like(epsilon) if self.epsilon is None else self.epsilon
        self.epsilon = kept(self.epsilon, before.where(epsilon * 0 != 0, epsilon))
        self.b = kept(self.b, step.cache["b"].nan_to_num(1.0))
        pull = step.cache.get("pull")
        self.pull = None if pull is None else kept(self.pull, pull)
        self._probes.step(step.stats)

    # The probes

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Find the head; build the probes if their sizes are known, else on the first batch."""
        self._run = run
        self._head = Head(run, self.head) if self.lam > 0 else None
        if self._head is not None and self.direction == "gradient" and sharding.is_sharded(self._head.weight):
            raise ConfigError(
                "Option `direction` of method `cggm` should be 'weight' where `fully_shard` shards the head, of whose "
                "gradient each rank has a part alone. Found 'gradient': leave it out, pass `lam=0`, or leave the "
                "head's parameters out of the sharding (`ignored_params=`)."
            )
        sizes = dict(run.feature_sizes)
        if isinstance(self.probes, Mapping):
            self._adopt({}, 0)
        elif sizes and self._head is not None and self.head is None:
            self._adopt(sizes, len(self._head.weight))

    def _ready(self, batch: Batch) -> Probes:
        """Return the probes, on the device of the features; on the first batch, build them and compare sizes."""
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
        self._probes.follow(features)
        return self._probes

    def _adopt(self, sizes: Sizes, outputs: int) -> None:
        """Take probes for these sizes, built now if there are none, and compare their shapes with the head's."""
        probes = self._built or self._made(sizes, outputs)
        lasts: dict[str, nn.Module] = {}
        if self._head is not None:
            lasts = {name: last_layer(probe, f"The probe of {name!r}") for name, probe in probes.modules.items()}
            self._head.compare(lasts, sizes)
        if self._built is None:
            probes.share(self._attached)
        self._built, self.sizes, self.outputs = probes, sizes, outputs
        self._last_layers = lasts

    def _made(self, sizes: Sizes, outputs: int) -> Probes:
        widths = sizes if self._head is None else self._head.widths(sizes)
        make = maker(self._attached, self.probes, sizes, widths, outputs)
        return Probes.build(self._attached, make, self.probe_optimizer or default_optimizer, "probe")

    @property
    def _attached(self) -> Run:
        assert self._run is not None
        return self._run

    @property
    def _probes(self) -> Probes:
        assert self._built is not None
        return self._built

    # State; saved states have the probes under "guides", an earlier name

    def state_dict(self) -> dict[str, Any]:
        """Return the declared state, and the probes with their optimizer; ``None`` before they are built."""
        return Method.state_dict(self) | {"guides": self._built and self._built.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned; probes are built for it if no batch did so yet."""
        probes = saved["guides"]
        if probes is None:
            self._built = None if self.sizes else self._built
        else:
            self._adopt(dict(saved["sizes"]), saved["outputs"])
            self._probes.load_state_dict(probes)
        Method.load_state_dict(self, {name: value for name, value in saved.items() if name != "guides"})

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Raise a CheckpointError unless ``saved`` is of a run with these probes."""
        Method.check_state(self, {name: value for name, value in saved.items() if name != "guides"})
        probes = saved.get("guides")
        if probes is not None and not (self._built or self._made(saved["sizes"], saved["outputs"])).fits(probes):
            raise CheckpointError(
                "The saved probes of method `cggm` should have the shapes of those of `probes=`. Found other shapes: "
                "build BalancedOptimizer with the `probes=` of the run that was saved."
            )


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [CGGM]
