"""The ways to obtain the logits of one modality alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbalance.distributed import Ranks
from modbalance.errors import ConfigError, suggest
from modbalance.topology import Part, Topology, resolve

if TYPE_CHECKING:
    from modbalance.records import Batch

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

    def __init__(self, spec: UnimodalSpec, topology: Topology, ranks: Ranks) -> None:
        self.topology = topology
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
            topology.heads = list(self.heads.values())
        elif callable(spec):
            self.kind, self.function = "callable", spec
            topology.heads = [] if topology.model is None else [topology.model]
        else:
            raise ConfigError(f"{_EXPECTED} Found `unimodal = {spec!r}`.")

    def logits(self, batch: Batch, *, live: bool = False, auto: str = "auto") -> Features:
        """Return the logits by modality, (B, C, ...) each.

        Args:
            batch: Where the features and the fused logits come from.
            live: Whether the logits keep the graph to the encoders.
            auto: The way to go where the user left the choice.
        """
        features = batch.require_features()
        if not live:
            features = {name: feature.detach() for name, feature in features.items()}
        kind = auto if self.chooses and auto != "auto" else self.kind
        if kind == "auto":
            with torch.no_grad():
                self._decide(batch, features)
            kind = self.kind
        logits = self._by_kind(kind, features, batch)
        _check_shapes(logits, batch.logits)
        return logits

    def _by_kind(self, kind: str, features: Features, batch: Batch) -> Features:
        if kind == "slice":
            return self._slices(features, self._require_linear(features))
        if kind in ("zero", "auto"):
            return self._zeroed(features, batch)
        with self.topology.paused(), batch.autocast(), self.topology.preserved(self.topology.reruns, None):
            if self.function is not None:
                return self._in_order(self.function(features))
            return {name: head(features[name]) for name, head in self.heads.items()}

    def _in_order(self, logits: Features) -> Features:
        modalities = self.topology.modalities
        if set(logits) != set(modalities):
            raise ConfigError(
                f"The callable in `unimodal` should return logits for each of {list(modalities)}. "
                f"Found {sorted(logits)}."
            )
        return {name: logits[name] for name in modalities}

    def _slices(self, features: Features, head: nn.Linear) -> Features:
        logits, start, bias = {}, 0, head.bias
        share = None if bias is None else bias / len(features)
        with torch.autocast(head.weight.device.type, enabled=False):
            for name, feature in features.items():
                stop = start + feature.shape[-1]
                logits[name] = F.linear(feature.to(head.weight.dtype), head.weight[:, start:stop], share)
                start = stop
        return logits

    def _zeroed(self, features: Features, batch: Batch) -> Features:
        zeros = {name: torch.zeros_like(feature) for name, feature in features.items()}
        return {name: self.topology.fuse({**zeros, name: feature}, batch.forward) for name, feature in features.items()}

    def _decide(self, batch: Batch, features: Features) -> None:
        head = self._linear(features)
        forward = batch.forward
        computed_in = batch.logits.dtype if forward is None else forward.precision(batch.logits.dtype)
        vote = NO
        if head is not None:
            vote = agreement(torch.stack([*self._slices(features, head).values()]).sum(0), batch.logits, computed_in)
        verdict = self.ranks.minimum(vote, batch.logits.device)
        if verdict != ABSTAIN:
            self.kind = "slice" if verdict == YES else "zero"

    def _linear(self, features: Features) -> nn.Linear | None:
        width = sum(feature.shape[-1] for feature in features.values())
        head = sole_layer(self.topology)
        return head if isinstance(head, nn.Linear) and head.in_features == width else None

    def _require_linear(self, features: Features) -> nn.Linear:
        head = self._linear(features)
        if head is None:
            sizes = {name: feature.shape[-1] for name, feature in features.items()}
            raise ConfigError(
                f"`unimodal='slice'` should go with a fusion whose only parameters are one nn.Linear over the "
                f"concatenated features {sizes}. Found {[type(m).__name__ for m in self.topology.fusion]}: "
                "use 'zero', own heads or a callable."
            )
        return head

    def _resolve_heads(self, spec: Mapping[str, Part]) -> dict[str, nn.Module]:
        if set(spec) != set(self.topology.modalities):
            raise ConfigError(
                f"Parameter `unimodal` should name a head for each of {list(self.topology.modalities)}. "
                f"Found heads for {sorted(spec)}."
            )
        return {
            name: resolve(spec[name], self.topology.model, f"unimodal[{name!r}]") for name in self.topology.modalities
        }


def _check_shapes(unimodal: Features, fused: Tensor) -> None:
    """Raise unless unimodal logits look like the fused ones; a loss would broadcast them, or score something else."""
    for name, logits in unimodal.items():
        if logits.shape != fused.shape:
            raise ConfigError(
                f"The logits of each modality should have the shape of those in the criterion, {tuple(fused.shape)}. "
                f"Found {tuple(logits.shape)} for {name!r}: let `fusion=` name all modules up to the logits, or pass "
                "a callable from features to logits that ends as the model and `logits_of=` do."
            )


def sole_layer(topology: Topology) -> nn.Module | None:
    """Return the layer that holds all of the fusion's parameters, if there is one."""
    leaves = [module for root in topology.fusion for module in root.modules() if list(module.parameters(False))]
    return leaves[0] if len(leaves) == 1 else None


def agreement(found: Tensor, expected: Tensor, computed_in: torch.dtype) -> int:
    """Return a vote on whether two tensors are equal but for the rounding of ``computed_in`` (one host read).

    Zeros, nothing and NaN say nothing.
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
