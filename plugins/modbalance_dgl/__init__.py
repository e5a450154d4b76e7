"""DGL: disentangled gradient learning, with a loss for the encoders and another one for the fusion.

Source: Wei, Luo, Luo, "Boosting Multimodal Learning via Disentangled Gradient Learning", ICCV 2025.
Deviations of the authors' code from the paper, and which side each option takes: docs/methods/dgl.md.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from itertools import chain
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import Batch, ConfigError, Method, Run, Step, gt, hookimpl, one_of, option


@attrs.define(eq=False, kw_only=True)
class DGL(Method):
    """Trains each encoder by the loss of its unimodal logits alone, and the fusion by the fused loss alone.

    Touches the features, through which no gradient of the fused loss comes back, and the loss, which gains a term L_u.
    Costs a pass of the head per modality, and one backward; no further encoder pass, no host read, no state.
    """

    name: ClassVar[str] = "dgl"
    needs = frozenset({"model", "features", "unimodal_logits", "loss_fn"})
    min_modalities = 2
    suits: ClassVar[Mapping[str, str]] = {
        "starved": "Trains each encoder by its own loss alone, undisturbed by the others.",
        "conflict": "Keeps the gradient of the fused loss away from the encoders.",
    }
    step_cost: ClassVar[float | None] = 1.02
    preset_clips: ClassVar[Mapping[str, float]] = {"official": 40.0}

    alpha: float = option(4.0, gt(0), "weight of the unimodal losses, dimensionless, > 0")
    detach_at: str = option(
        "features", one_of("features", "projected"), "what the fused loss trains: the fusion, or its last layer alone"
    )

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Raise a ConfigError for a model whose fusion is not known: unimodal losses could not hold it constant."""
        any_will_do = self.detach_at == "features"
        if not run.fusion_modules and not (any_will_do and run.fusion_callable):
            what = "a path, a module, a list of them" + (" or a callable" if any_will_do else "")
            found = "none" if run.fusion_callable is None else "a callable, whose layers are not known"
            raise ConfigError(f"Method `dgl` needs `fusion=`, where features become logits: {what}. Found {found}.")

    @hookimpl
    def modbalance_features(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sg(z_i): equal features, through which the fused loss reaches no encoder."""
        return {name: cut(feature) for name, feature in features.items()}  # L_f = L(H(sg z_1, .., sg z_M))

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the unimodal losses L_u, of the logits o_i of z_i alone, with the weights of the head as constants."""
        o = batch.unimodal_logits_live(frozen_head=True, auto="zero")
        losses = batch.losses(o)  # L(o_i)
        for name, loss in losses.items():
            batch.run.log(f"loss/{name}", loss)
        return {"unimodal": self.alpha * functools.reduce(torch.add, losses.values())}  # L_u = alpha sum_i L(o_i)

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Remove the gradients of the projections, if the fused loss is cut behind them.

        Projections are all layers of the fusion but the last that is in use, in the order of registration.
        """
        if self.detach_at == "features":
            return
        modules = [module for part in step.run.fusion_modules for module in part.modules()]
        layers = [list(module.parameters(recurse=False)) for module in modules]
        used = [layer for layer in layers if any(p.grad is not None or not p.requires_grad for p in layer)]
        for parameter in chain(*used[:-1]):
            parameter.grad = None


def cut(feature: Tensor) -> Tensor:
    """Return sg(z): an equal tensor with a gradient of zero, also where the gradient that arrives is not finite.

    After a detach, DDP would take the encoder for unused and refuse the gradient of its unimodal loss.
    """
    return torch.where(torch.ones((), dtype=torch.bool, device=feature.device), feature.detach(), feature)


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [DGL]
