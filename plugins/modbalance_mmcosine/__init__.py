"""MMCosine: logits from cosines of features and class weights, modality by modality.

Source: Xu, Feng, Zhang, Hu, "MMCosine: Multi-Modal Cosine Loss Towards Balanced Audio-Visual Fine-Grained Learning",
ICASSP 2023. Symbols are those of docs/methods/mmcosine.md, which also lists quirks of the authors' code.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbalance import Batch, ConfigError, Method, Run, Step, ge, gt, hookimpl, one_of, option, optional
from modbalance.method import Preset
from modbalance.scores import row_mask, widened
from modbalance.sharding import is_sharded

EPS = 1e-12


def paths(value: Any) -> str | None:
    """Check for a mapping from names to paths."""
    is_valid = isinstance(value, Mapping) and all(isinstance(each, str) for each in (*value, *value.values()))
    return None if is_valid else "a mapping from modalities to paths of nn.Linear modules"


@attrs.define(eq=False, kw_only=True)
class MMCosine(Method):
    """Replaces the fused logits by the sum over modalities of scaled cosines between features and class weights.

    Touches the logits, and with `nce` the loss. Needs a linear last layer over concatenated parts, one per modality, or
    a linear head for each. Costs head-sized operations; no further pass, no host read, no state.
    """

    name: ClassVar[str] = "mmcosine"
    needs = frozenset({"features", "model", "categories"})
    min_modalities = 2
    presets: ClassVar[tuple[Preset, ...]] = ("official",)
    excluded_hooks = frozenset({"modbalance_features"})
    acts_in_eval = True
    step_cost: ClassVar[float | None] = 1.00

    scale: float = option(10.0, gt(0), "s, factor on the cosines, dimensionless, > 0")
    nce: float = option(0.0, ge(0), "weight of the contrastive term, dimensionless, >= 0")
    nce_temperature: float = option(0.1, gt(0), "temperature of the contrastive term, > 0")
    eval_logits: str = option(
        "linear", one_of("linear", "cosine"), "fused logits of the criterion in evaluation: the plain head, or cosines"
    )
    heads: Mapping[str, str] | None = option(
        None, optional(paths), "linear heads by modality; None: the sole layer of the fusion, its parts or all of it"
    )

    _linears: dict[str, nn.Linear] = attrs.field(factory=dict, init=False, repr=False)

    def exemptions(self) -> Mapping[str, str]:
        """Return the rules of `modbalance.testing` that do not hold with these options."""
        if not self.nce:
            return {}
        return {
            "accumulation": "negatives are those of a micro-batch",
            "order_of_modalities": "of two modalities the softmax runs over the samples of the second",
        }

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Find the linear layers, or raise a ConfigError that names the layer which is none."""
        if self.heads is not None:
            if set(self.heads) != set(run.modalities):
                raise ConfigError(
                    f"Option `heads` of method `mmcosine` should name a head for each of {list(run.modalities)}. "
                    f"Found {sorted(self.heads)}."
                )
            found: dict[str, Any] = {m: run.module(self.heads[m], "Option `heads`") for m in run.modalities}
        else:
            found = {"fusion": run.sole_fusion_layer}
        for name, layer in found.items():
            if not isinstance(layer, nn.Linear):
                kinds = [type(each).__name__ for each in run.fusion_modules] if layer is None else type(layer).__name__
                raise ConfigError(
                    "Method `mmcosine` needs a last layer that is linear on a concatenation of one part per modality. "
                    f"Found {kinds} for {name!r}: name the last nn.Linear in `fusion=`, with `feature_sizes=`, or "
                    "linear heads in `heads=`."
                )
        self._linears = found
        run.provide_unimodal_logits(self.unimodal)

    @hookimpl
    def modbalance_logits(self, batch: Batch) -> Tensor | None:
        """Return sum_i s cos(z_i, W_i); in evaluation as `eval_logits` says."""
        model = batch.run.model
        is_training = model is not None and model.training and batch.logits.requires_grad
        if not is_training and self.eval_logits == "linear":
            return None
        batch.require_kind("classes", "labels", what="bounds the logits by M * scale")
        o = self.unimodal(batch)
        logits = functools.reduce(torch.add, o.values())
        if logits.shape != batch.logits.shape:
            raise ConfigError(
                "Method `mmcosine` needs logits that are the output of the last linear layer. Found logits of shape "
                f"{tuple(batch.logits.shape)}, and {tuple(logits.shape)} at that layer: name it in `fusion=`, or use "
                "another method where the model reshapes its output."
            )
        if not is_training:
            return logits
        if len(o) * self.scale < math.log(max(logits.shape[-1], 1)) and not batch.run.steps:
            batch.run.warn("M * scale is below log C: no class can become likely. Pass a larger `scale` to `mmcosine`.")
        # A product with 0, since DDP expects a gradient of each parameter of the forward.
        for layer in self._linears.values():
            if layer.bias is not None and not is_sharded(layer.bias):
                logits = logits + 0 * layer.bias
        return logits

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the contrastive term, a mean over pairs of modalities."""
        if not self.nce:
            return {}
        y, pairs = batch.target, itertools.combinations(batch.require_features(), 2)
        if not isinstance(y, Tensor) or y.is_floating_point() or y.shape != batch.logits.shape[:1]:
            found = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ConfigError(
                "Option `nce` of method `mmcosine` needs one class index per sample as the target. Found "
                f"{found}: pass `nce=0`."
            )
        counts = y != getattr(batch.run.loss_fn, "ignore_index", -100)
        terms = [self.contrast(batch, a, b, y, counts) for a, b in pairs]
        return {"nce": self.nce * functools.reduce(torch.add, terms) / len(terms)}

    def contrast(self, batch: Batch, a: str, b: str, y: Tensor, counts: Tensor) -> Tensor:
        """Return the contrastive term of two modalities, of the samples that have both and a class."""
        for name in (a, b):
            if (there := batch.present.get(name)) is not None:
                counts = counts & there.to(counts.device)
        z_a, z_b = (widened(batch.features[name]).flatten(1) for name in (a, b))
        return contrast(z_a, z_b, y, counts, self.nce_temperature)

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        """Remove the gradient of the bias, which no logits read, so that it stays as it is."""
        for layer in self._linears.values():
            if layer.bias is not None:
                layer.bias.grad = None

    def unimodal(self, batch: Batch) -> dict[str, Tensor]:
        """Return o_i = s cos(z_i, W_i) by modality, (B, ..., C) each, in single precision or double."""
        o, start, z = {}, 0, batch.require_features()
        is_whole = self.heads is not None or self.is_shared([z_i.shape[-1] for z_i in z.values()])
        for name, z_i in z.items():
            layer = self._linears.get(name) or self._linears["fusion"]
            width = z_i.shape[-1]
            w_i = layer.weight if is_whole else layer.weight.narrow(1, start, width)
            if is_sharded(w_i) and not is_sharded(z_i):
                raise ConfigError(
                    "The weights that method `mmcosine` normalises should be whole after the forward. Found weights "
                    "that `fully_shard` shards again: pass `reshard_after_forward=False` for the unit of the head."
                )
            with torch.autocast(z_i.device.type, enabled=False):
                o[name] = self.scale * F.linear(normalized(widened(z_i)), normalized(widened(w_i)))
            if (there := batch.present.get(name)) is not None:
                o[name] = o[name].masked_fill(~row_mask(there, o[name]), 0)
            start += width
        return o

    def is_shared(self, widths: Sequence[int]) -> bool:
        """Return whether the layer of the fusion takes the feature of each modality alone, or all of them side by side.

        Raises:
            ConfigError: The widths of the features fit neither.
        """
        layer = self._linears["fusion"]
        if sum(widths) != layer.in_features and set(widths) != {layer.in_features}:
            raise ConfigError(
                "Method `mmcosine` needs a last layer that is linear on the features side by side, or on each of them. "
                f"Found {layer}, and features of widths {list(widths)}: name linear heads in `heads=`."
            )
        return sum(widths) != layer.in_features


def normalized(x: Tensor) -> Tensor:
    """Return the rows divided by their length; zeros, with a gradient of zero, where that is below 1e-12."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    is_zero = length < EPS
    return x.masked_fill(is_zero, 0) / length.masked_fill(is_zero, 1)


def contrast(a: Tensor, b: Tensor, y: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """Return the contrastive term of two modalities, 0-dim: pairs of one class are near, those of others are not.

    Args:
        a: Features of one modality, (B, D).
        b: Features of the other one, (B, D).
        y: Class of each sample, (B,).
        counts: Which samples count, (B,).
        temperature: Of the softmax, which runs over the samples of ``b``.
    """
    pairs = (counts[:, None] & counts[None, :]).to(a)
    s = nearness(normalized(a), normalized(b)) / temperature
    s = s.masked_fill(~counts[None, :], torch.finfo(s.dtype).min / 2).softmax(1)
    is_same = (y[:, None] == y[None, :]) * pairs
    others = pairs - is_same
    near = (is_same * -(s + 1e-10).log()).sum(1) / is_same.sum(1).clamp(min=1)
    far = (others * -(1 - s + 1e-10).log()).sum(1) / others.sum(1).clamp(min=1)
    return (near + far).sum() / counts.sum().clamp(min=1)


def nearness(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - |a_i - b_j|^2 / 2 of normalised features, (B, D) each: the cosine but for zeros, (B, B)."""
    # A product of matrices would be less exact in the gradient of features that lie close together.
    return 1 - torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / 2


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [MMCosine]
