"""Logits of one modality alone, from features: slices of a linear head, zeroed features, own heads or a callable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbalance._model.forward import Forward
from modbalance._model.rerun import Rerun, frozen, preserved
from modbalance._model.structure import Part, Structure, resolve
from modbalance._ranks import Ranks
from modbalance.errors import ConfigError, suggest
from modbalance.sharding import gathered, is_sharded, whole

Features = Mapping[str, Tensor]
UnimodalSpec = str | Mapping[str, Part] | Callable[[Features], Features]

# The slices of a linear head add up to its logits but for rounding, which TF32 and half precision make coarse.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-3}
_COARSE_ROUNDING = 3e-2

_EXPECTED = "Parameter `unimodal` should be 'auto', 'slice', 'zero', a mapping to own heads, or a callable."

# Votes of a rank; the smallest wins. The decision is put off only if no rank's batch shows anything.
NO, YES, ABSTAIN = range(3)


class Unimodal:
    """Logits by modality from features, in the way that `unimodal=` names.

    ``slice``: the head is linear over concatenated features, z_i W_i^T + b/M, so that the logits of all modalities add
    up to the fused ones. ``zero``: the fusion runs with the features of the others zeroed. ``auto``: the slice if, on
    the first batch, the slices do add up to the fused logits, else zero. A mapping: own heads. Or a callable from
    features to logits, both by modality.
    """

    def __init__(self, spec: UnimodalSpec, structure: Structure, rerun: Rerun, ranks: Ranks) -> None:
        self.structure = structure
        self.rerun = rerun
        self.ranks = ranks
        self.kind = "auto"
        self.chooses = spec == "auto"
        self.heads: dict[str, nn.Module] = {}
        self.function: Callable[[Features], Features] | None = None
        if isinstance(spec, str):
            if spec not in ("auto", "slice", "zero"):
                known = suggest(spec, ["auto", "slice", "zero"])
                raise ConfigError(f"{_EXPECTED} Found `unimodal = {spec!r}`. {known}")
            self.kind = spec
        elif isinstance(spec, Mapping):
            self.kind = "heads"
            self.heads = self._resolve_heads(spec)
        elif callable(spec):
            self.kind, self.function = "callable", spec
        else:
            raise ConfigError(f"{_EXPECTED} Found `unimodal = {spec!r}`.")

    def restore_choice(self, kind: str) -> None:
        """Take over a choice that a checkpoint holds, where the user left it to ``"auto"``."""
        if self.chooses and kind in ("auto", "slice", "zero"):
            self.kind = kind

    def logits(
        self, features: Features, fused: Tensor, forward: Forward | None, *, live: bool = False, auto: str = "auto"
    ) -> Features:
        """Return the logits by modality, (B, C, ...) each, in no shorter a type than the fused ones.

        Frameworks that widen the output of the model, outside of autocast, take the loss in single precision.

        Args:
            features: By modality, (B, ..., D_i).
            fused: Fused logits of the same batch, (B, C, ...).
            forward: The forward that they come from; ``None``: not seen.
            live: Whether the logits keep the graph to the encoders.
            auto: The way to go where the user left the choice.
        """
        if not live:
            features = {name: feature.detach() for name, feature in features.items()}
        kind = auto if self.chooses and auto != "auto" else self.kind
        if kind == "auto":
            with torch.no_grad():
                self._decide(features, fused, forward)
            kind = self.kind
        if live and kind == "slice":
            _check_trained(self._require_linear(features))
        logits = self._by_kind(kind, features, forward)
        _check_shapes(logits, fused)
        if all(each.dtype is fused.dtype for each in logits.values()):
            return logits
        return {name: each.to(torch.promote_types(each.dtype, fused.dtype)) for name, each in logits.items()}

    def frozen_head(self) -> AbstractContextManager[None]:
        """Let the parameters between features and unimodal logits act as constants in the body."""
        return frozen(self._modules)

    @property
    def _modules(self) -> list[nn.Module]:
        """Modules that may run when unimodal logits are computed; all of the model where a callable hides them."""
        model = self.structure.model
        hidden = [model] if self.function is not None and model is not None else []
        own = [*self.heads.values(), *hidden]
        return [*self.structure.fusion, *own] if own else self.rerun.fusion_modules

    def _by_kind(self, kind: str, features: Features, forward: Forward | None) -> Features:
        if kind == "slice":
            return self._slices(features, self._require_linear(features))
        if kind in ("zero", "auto"):
            return self._zeroed(features, forward)
        autocast = nullcontext() if forward is None else forward.autocast()
        weights = gathered(self.heads.values(), features.values())
        alone = self.rerun.synchronized_as_in(forward)
        with self.rerun.watch.paused(), autocast, preserved(self._modules, None), alone, weights:
            if self.function is not None:
                return self._in_order(self.function(features))
            return {name: head(features[name]) for name, head in self.heads.items()}

    def _in_order(self, logits: Features) -> Features:
        modalities = self.structure.modalities
        if set(logits) != set(modalities):
            raise ConfigError(
                f"The callable in `unimodal` should return logits for each of {list(modalities)}. "
                f"Found {sorted(logits)}."
            )
        return {name: logits[name] for name in modalities}

    def _slices(self, features: Features, head: nn.Linear) -> Features:
        weight, logits, start = whole(head.weight), {}, 0
        bias = None if head.bias is None else whole(head.bias)
        share = None if bias is None else bias / len(features)
        device, dtype = weight.device.type, weight.dtype
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            for name, feature in features.items():
                width = feature.shape[-1]
                logits[name] = F.linear(feature.to(dtype), weight.narrow(1, start, width), share)
                start += width
        return logits

    def _zeroed(self, features: Features, forward: Forward | None) -> Features:
        zeros = {name: torch.zeros_like(feature) for name, feature in features.items()}
        return {name: self.rerun.fuse({**zeros, name: feature}, forward) for name, feature in features.items()}

    def _decide(self, features: Features, fused: Tensor, forward: Forward | None) -> None:
        head = self._linear(features)
        computed_in = fused.dtype if forward is None else forward.precision(fused.dtype)
        vote = NO
        if head is not None:
            vote = agreement(torch.stack([*self._slices(features, head).values()]).sum(0), fused, computed_in)
        verdict = self.ranks.minimum(vote, fused.device)
        if verdict != ABSTAIN:
            self.kind = "slice" if verdict == YES else "zero"

    def _linear(self, features: Features) -> nn.Linear | None:
        width = sum(feature.shape[-1] for feature in features.values())
        head = self.structure.sole_fusion_layer()
        return head if isinstance(head, nn.Linear) and head.in_features == width else None

    def _require_linear(self, features: Features) -> nn.Linear:
        head = self._linear(features)
        if head is None:
            sizes = {name: feature.shape[-1] for name, feature in features.items()}
            raise ConfigError(
                f"`unimodal='slice'` should go with a fusion whose only parameters are one nn.Linear over the "
                f"concatenated features {sizes}. Found {[type(m).__name__ for m in self.structure.fusion]}: "
                "use 'zero', own heads or a callable."
            )
        return head

    def _resolve_heads(self, spec: Mapping[str, Part]) -> dict[str, nn.Module]:
        if set(spec) != set(self.structure.modalities):
            raise ConfigError(
                f"Parameter `unimodal` should name a head for each of {list(self.structure.modalities)}. "
                f"Found heads for {sorted(spec)}."
            )
        return {
            name: resolve(spec[name], self.structure.model, f"unimodal[{name!r}]") for name in self.structure.modalities
        }


def _check_trained(head: nn.Linear) -> None:
    """Raise where unimodal logits should train a head by slices of its whole weight, which no gradient leaves."""
    if torch.is_grad_enabled() and any(is_sharded(p) and p.requires_grad for p in head.parameters()):
        raise ConfigError(
            "The weights of the fusion should be whole after the forward where a method trains it by unimodal logits. "
            "Found weights that `fully_shard` shards again: pass `reshard_after_forward=False` for the unit that the "
            "fusion belongs to."
        )


def _check_shapes(unimodal: Features, fused: Tensor) -> None:
    """Raise unless unimodal logits look like the fused ones; a loss would broadcast them, or score something else."""
    for name, logits in unimodal.items():
        if logits.shape != fused.shape:
            raise ConfigError(
                f"The logits of each modality should have the shape of those in the criterion, {tuple(fused.shape)}. "
                f"Found {tuple(logits.shape)} for {name!r}: let `fusion=` name all modules up to the logits, or pass "
                "a callable from features to logits that ends as the model and `logits_of=` do."
            )


def agreement(found: Tensor, expected: Tensor, computed_in: torch.dtype) -> int:
    """Return a vote on whether two tensors are equal but for the rounding of ``computed_in`` (one host read).

    Zeros alone, no elements and NaN are an abstention.
    """
    if found.shape != expected.shape:
        return NO
    if found.numel() == 0:
        return ABSTAIN
    largest = torch.stack([expected.detach().abs().amax(), (found - expected).detach().abs().amax()])
    scale, error = largest.tolist()
    if math.isnan(error) or (scale == 0 and error == 0):
        return ABSTAIN
    return YES if error <= scale * _ROUNDING.get(computed_in, _COARSE_ROUNDING) else NO
