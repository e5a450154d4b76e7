"""MMPareto: each encoder learns by the fused and by its own loss, weighted so that the sum opposes neither.

Source: Wei, Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML 2024.
Symbols are those of docs/methods/mmpareto.md, which also lists the quirks of the authors' code.
"""

from __future__ import annotations

import functools
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
    Run,
    Step,
    WindowedMethod,
    gradients,
    gt,
    hookimpl,
    one_of,
    option,
    state,
)
from modbalance.method import Preset
from modbalance_mmpareto.heads import Heads, MakeOptimizer, default_optimizer, sizes_of


def is_maker(value: Any) -> str | None:
    """Check for a callable that returns an optimizer."""
    return None if value is None or callable(value) else "None or a callable: parameters -> optimizer"


@attrs.define(eq=False, kw_only=True)
class MMPareto(WindowedMethod):
    """Combines the gradients of the fused and of the unimodal loss in each encoder, without conflict.

    Touches the gradients of the encoders, and the loss, by which own heads learn. Costs one further backward of each
    encoder, a pass of the own heads and a copy of the encoders' gradients; no host read.
    """

    name: ClassVar[str] = "mmpareto"
    needs = frozenset({"model", "features", "loss_fn"})
    min_modalities = 2
    suits: ClassVar[Mapping[str, str]] = {
        "conflict": "Combines the gradients of the fused and the unimodal loss without conflict."
    }
    presets: ClassVar[tuple[Preset, ...]] = ("official",)
    excluded_hooks = frozenset({"modbalance_features"})
    step_cost: ClassVar[float | None] = 1.85

    gamma: float = option(1.5, gt(0), "length of the combined gradient over that of the sum, dimensionless, > 0")
    rescale: str = option(
        "tensor", one_of("tensor", "encoder", "none"), "what gets the length back that a conflict takes"
    )
    heads: str = option(
        "own", one_of("own", "slice"), "unimodal logits: of heads that learn, or of the fused head as a constant"
    )
    head_optimizer: MakeOptimizer | None = option(
        None, is_maker, "parameters -> optimizer, of heads for a model without own ones; None: Adam, lr 1e-3"
    )

    sizes: dict[str, int] = state({})
    outputs: int = state(0)

    _run: Run | None = attrs.field(default=None, init=False, repr=False)
    _built: Heads | None = attrs.field(default=None, init=False, repr=False)

    def exemptions(self) -> Mapping[str, str]:
        """Return why names of modalities matter."""
        own = {"renaming": "the initial weights of a head depend on the name of its modality"}
        return own if self.heads == "own" else {}

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Remember the run; refuse own heads where the fused one should be used."""
        self._run = run
        if self.heads == "slice" and run.has_own_heads:
            raise ConfigError(
                "Option `heads = 'slice'` of method `mmpareto` uses the fused head. Found own heads in `unimodal=`: "
                "leave one of the two out."
            )

    # The paper's equations

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses l_i of the unimodal logits, by which own heads learn; encoders get no gradient of them."""
        beside = self._ready(batch)
        losses = batch.term_gradients(self._losses, None if beside is None else beside.modules)
        batch.run.log_each("loss", losses.values())
        total = functools.reduce(torch.add, losses.values())
        # Heads beside the model learn by gathered gradients, and not by what a backward leaves in them.
        return {"unimodal": total if beside is None and self.heads == "own" else total.detach()}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        is_fused = self.heads == "slice"
        o = batch.unimodal_logits_live(frozen_head=is_fused) if self._built is None else self._built.logits(batch)
        return batch.losses(o)

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Write gamma max(1, |s_p| / |h_p|) h_p into the gradients of each encoder."""
        for name in step.run.modalities:
            found = self._combine(step, name)
            if found is None:
                continue
            cosine, c, is_bad, is_cancelled = found
            step.run.log(f"cosine/{name}", cosine)
            step.run.log(f"weight/{name}", c)
            step.run.count(f"nonfinite/{name}", is_bad)
            step.run.count(f"cancelled/{name}", is_cancelled)

    def _combine(self, step: Step, modality: str) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Combine the gradients of one encoder; return cosine, c and whether values were bad or cancelled out."""
        pairs = step.term_gradients(modality)
        if not pairs:
            return None
        parameters, u = [p for p, _ in pairs], [u_p for _, u_p in pairs]
        g = dense(parameters)
        a, b, d = (gradients.products(x, y).sum() for x, y in ((g, g), (g, u), (u, u)))
        is_bad_g = a * 0 != 0
        is_bad = is_bad_g | (d * 0 != 0)
        for u_p in u:
            u_p.nan_to_num_(0.0, 0.0, 0.0)  # with the weight 0 below, as if u were 0 where a value of it is bad
        b, d = b.masked_fill(is_bad, 0), d.masked_fill(is_bad, 0)
        c = weight(a, b, d).masked_fill(is_bad, 0.5)
        s_norm = gradients.sum_norms(g, u)
        gradients.scale_(parameters, 2 * c)
        torch._foreach_mul_(u, (2 * (1 - c)).masked_fill(is_bad, 0).to(u[0]))
        torch._foreach_add_(g, u)  # h_p = 2 c g_p + 2 (1 - c) u_p
        h_norm = stacked(torch._foreach_norm(g))
        factors = self._factors(s_norm, h_norm).masked_fill(is_bad, self.gamma).masked_fill(is_bad_g, 1.0)
        torch._foreach_mul_(g, [f.to(g_p) for f, g_p in zip(factors.unbind(), g, strict=True)])
        is_cancelled = (h_norm.amax() == 0) & (a > 0)
        cosine = b / (a * d).sqrt().clamp(min=torch.finfo(a.dtype).tiny)
        return cosine, c, is_bad, is_cancelled

    def _factors(self, s: Tensor, h: Tensor) -> Tensor:
        """Return gamma max(1, |s| / |h|) of each tensor, (N,), from the norms of s_p and h_p, (N,)."""
        if self.rescale == "none":
            return torch.full_like(h, self.gamma)
        if self.rescale == "encoder":
            s, h = (torch.linalg.vector_norm(x).expand_as(x) for x in (s, h))
        return self.gamma * torch.where(h > 0, s / h, 1.0).clamp(min=1)

    # Heads beside the model

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        """Step the heads beside the model."""
        if self._built is not None and step.terms:
            self._built.step(step)

    def _ready(self, batch: Batch) -> Heads | None:
        """Return the heads beside the model, built on the first batch; ``None`` where there are others."""
        if self.heads == "slice" or batch.run.has_own_heads:
            return None
        if self._built is None:
            self._adopt(*sizes_of(batch))
            self._heads.share(batch.run)
        self._heads.follow(batch.require_features())
        return self._heads

    @property
    def _heads(self) -> Heads:
        assert self._built is not None
        return self._built

    def _adopt(self, sizes: dict[str, int], outputs: int) -> None:
        assert self._run is not None
        self._built = Heads.linear(self._run, sizes, outputs, self.head_optimizer or default_optimizer)
        self.sizes, self.outputs = sizes, outputs

    def state_dict(self) -> dict[str, Any]:
        """Return the declared state, and the heads with their optimizer; ``None`` where there are none."""
        return Method.state_dict(self) | {"built": self._built and self._built.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned; heads are built for it."""
        self._built = None
        if saved["built"] is not None:
            self._adopt(dict(saved["sizes"]), saved["outputs"])
            self._heads.load_state_dict(saved["built"])
        Method.load_state_dict(self, {name: value for name, value in saved.items() if name != "built"})

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Raise a CheckpointError unless ``saved`` is of a run with the same kind of heads."""
        Method.check_state(self, {name: value for name, value in saved.items() if name != "built"})
        assert self._run is not None
        if saved.get("built") is not None and (self.heads == "slice" or self._run.has_own_heads):
            raise CheckpointError(
                "The saved state of method `mmpareto` should be of a run with the heads of this one. Found heads that "
                "the method built: leave out `unimodal=` and `heads=`, as in the run that was saved."
            )


def weight(a: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """Return c, the weight of the fused gradient, 0-dim, from <g, g>, <g, u> and <u, u>."""
    total = a + d - 2 * b
    between = (d - b) / torch.where(total > 0, total, 1)  # argmin over c of |c g + (1 - c) u|^2
    solved = torch.where(b >= a, 0.999, torch.where(b >= d, 0.001, between))
    return torch.where(b > 0, 0.5, solved)


def stacked(norms: Sequence[Tensor]) -> Tensor:
    """Return norms as one tensor, (N,), in single precision at least."""
    wide = torch.promote_types(norms[0].dtype, torch.float32)
    return torch.stack([norm.to(norms[0].device, wide) for norm in norms])


def dense(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradients of parameters, or raise a ConfigError for a sparse one."""
    if {g.layout for p in parameters if (g := p.grad) is not None} != {torch.strided}:
        raise ConfigError(
            "Gradients of encoders should be dense for method `mmpareto`, which adds two of them. Found a sparse one: "
            "build the embedding with `sparse=False`."
        )
    return gradients.all_values(parameters)


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [MMPareto]
