"""What hooks receive beside the run: a batch in the criterion, a step in `modulate()`, the data of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch
from torch import Tensor, nn

from modbalance.errors import ConfigError, ObservationError
from modbalance.layout import map_tensors, tensors_in

if TYPE_CHECKING:
    from modbalance.capture import Forward
    from modbalance.method import Method
    from modbalance.run import Run
    from modbalance.scores import Score

Forwarder = Callable[[nn.Module, Any], tuple[Tensor, Any]]


# A dataclass: dynamo cannot build an attrs class with factories inside a compiled forward.
@dataclass(eq=False)
class Batch:
    """One call of the criterion, or the forward that leads to it.

    Attributes:
        run: The run.
        forward: What the hooks on the model saw of the forward, ``None`` in the model-free form.
        features: By modality, (B, ..., D_i), with graph; empty where no hook and no user gave them.
        logits: Fused logits, with graph.
        target: Target as given to the criterion.
        task_loss: The user's loss as a function of logits, with the target and further arguments of this call.
        present: By modality, boolean (B,): the samples that have this modality; a modality left out has all.
        index: Number of this batch among the micro-batches of its step, from 0.
        cache: A place for what an earlier hook of this batch hands to a later one.
    """

    run: Run
    forward: Forward | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    target: Any = None
    task_loss: Callable[[Tensor], Tensor] | None = None
    scorer: Score | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)
    given_logits: Mapping[str, Tensor] | None = None
    index: int = 0
    cache: dict[str, Any] = field(default_factory=dict)
    _unimodal_logits: Mapping[str, Tensor] | None = None

    @property
    def unimodal_logits(self) -> Mapping[str, Tensor]:
        """Logits of each modality alone, (B, C, ...) each, without graph; computed once, on first use.

        Raises:
            ObservationError: Neither the features nor the logits were seen or given.
        """
        if self._unimodal_logits is None:
            with torch.no_grad():
                self._unimodal_logits = self.given_logits or self.run.unimodal.logits(self)
        return self._unimodal_logits

    def unimodal_logits_live(self, frozen_head: bool = True, *, auto: str = "auto") -> Mapping[str, Tensor]:
        """Logits of each modality alone, with graph to the encoders.

        Args:
            frozen_head: Whether the fusion's parameters act as constants.
            auto: What ``unimodal="auto"`` means for the method: ``"zero"`` keeps the head's full bias.
        """
        with self.run.topology.frozen_fusion() if frozen_head else nullcontext():
            return self.given_logits or self.run.unimodal.logits(self, live=True, auto=auto)

    def coalition_logits(
        self, subset: Collection[str], *, remove: Literal["inputs", "features"] = "inputs", training: bool = False
    ) -> Tensor:
        """Return the fused logits when only the modalities of ``subset`` are present, with graph.

        Args:
            subset: Names of the modalities that stay.
            remove: Whether the inputs of the others become the mask value (the model runs again) or their features
                become zero (the fusion runs again).
            training: Mode of the pass. Training flags of every module, buffers and RNG are restored afterwards.
        """
        if remove == "features":
            kept = {name: f if name in subset else torch.zeros_like(f) for name, f in self.require_features().items()}
            return self.run.topology.fuse(kept, self.forward, training=training)
        topology, forward = self.run.topology, self.require_inputs()
        args, kwargs = topology.inputs.masked(*(forward.inputs or ((), {})), topology.modalities, subset)
        with topology.paused():
            return topology.rerun(forward, args, kwargs, training=training)

    def features_in_eval(self, *, masked: bool = False) -> Mapping[str, Tensor]:
        """Return the features of this batch in eval mode, with graph: the model runs once more.

        Where no encoder looks at another modality's input, these and the fusion give the logits of every coalition.

        Args:
            masked: Return those of the mask value instead, for one sample: (1, ..., D_i).
        """
        topology, forward = self.run.topology, self.require_inputs()
        args, kwargs = forward.inputs or ((), {})
        if masked:
            args, kwargs = topology.inputs.masked(args, kwargs, topology.modalities, ())
            args, kwargs = map_tensors(args, _first), map_tensors(kwargs, _first)
        with self.run.capture.watching() as seen:
            topology.rerun(forward, args, kwargs, training=False)
        return seen.features

    def why_not_separate(self) -> str | None:
        """Say why the features of a modality may depend on more than its own input, or return ``None``.

        With NaN in the place of all other inputs, features must stay as they were: NaN gets through a gate that is
        still closed, too. Integers become zero instead, which shows less. One pass per modality, one host read.
        """
        topology, forward = self.run.topology, self.require_inputs()
        args, kwargs = forward.inputs or ((), {})
        inputs = topology.inputs.read(args, kwargs, topology.modalities)
        if {id(t) for t in tensors_in((args, kwargs))} - {id(t) for t in tensors_in(tuple(inputs.values()))}:
            return "the model takes tensors that belong to no modality (`inputs=` says which do)"
        with torch.no_grad():
            features, differences = self.features_in_eval(), []
            if set(features) != set(inputs):
                return "the model does not call its fusion"
            for name, feature in features.items():
                poison = {other: map_tensors(value, _poison) for other, value in inputs.items() if other != name}
                changed = topology.inputs.write(args, kwargs, topology.modalities, poison)
                with self.run.capture.watching() as seen:
                    topology.rerun(forward, *changed, training=False)
                near = torch.isclose(seen.features[name], feature, rtol=1e-3, atol=1e-5, equal_nan=False)
                differences.append(~near.all())
        differs = torch.stack(differences).tolist()
        mixing = [name for name, found in zip(features, differs, strict=True) if found]
        return f"the features of {mixing[0]!r} depend on the input of another modality" if mixing else None

    def require_inputs(self) -> Forward:
        """Return the forward with the model's inputs, or raise an ObservationError that says how to have them seen."""
        if self.forward is None or self.forward.inputs is None:
            raise ObservationError(
                "Removing a modality at the input needs the forward of the model to be seen. Found none: pass "
                "`model=` to BalancedOptimizer and call the model itself, not its parts."
            )
        return self.forward

    def require_features(self) -> Mapping[str, Tensor]:
        """Return the features, or raise an ObservationError that says how they could have been seen."""
        missing = [name for name in self.run.modalities if name not in self.features]
        if missing:
            raise ObservationError(self.run.topology.explain_missing_features(missing if self.features else []))
        return self.features

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of the forward; none where no forward was seen."""
        return nullcontext() if self.forward is None else self.forward.autocast()

    def score(
        self, logits: Tensor, modality: str | None = None, of: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (sum of the scores of ``logits``, number of elements that count), both 0-dim, without graph.

        Elements that are ignored, or whose sample lacks ``modality``, count in neither.

        Args:
            logits: (B, C, ...).
            modality: Whose logits they are; ``None``: the fused ones.
            of: Turns the score of each element into what is summed, such as its logarithm.
        """
        assert self.scorer is not None
        with torch.no_grad():
            score, mask = self.scorer(logits, self.target)
            score = score if of is None else of(score)
            there = self.present.get(modality) if modality else None
            if there is not None:
                there = there.to(score.device).reshape(-1, *[1] * (score.dim() - 1)).expand_as(score)
                mask = there if mask is None else mask & there
            if mask is None:
                return score.sum(), score.new_full((), score.numel())
            return score.where(mask, 0).sum(), mask.sum(dtype=score.dtype)


@attrs.define(eq=False)
class Step:
    """One optimizer step, as one method sees it.

    Attributes:
        run: The run.
        stats: What this method's ``modbalance_observe`` returned, summed over micro-batches and ranks.
        coefficients: By modality, 0-dim: what the core applied for this method; empty before it did.
        cache: A place for what an earlier hook of this step hands to a later one.
    """

    run: Run
    method: Method
    stats: Mapping[str, Tensor]
    coefficients: Mapping[str, Tensor] = attrs.field(factory=dict)
    cache: dict[str, Any] = attrs.field(factory=dict)
    _generators: dict[torch.device, torch.Generator] = attrs.field(factory=dict)

    def generator(self, device: torch.device, seed: int) -> torch.Generator:
        """Return this step's generator on ``device``: one stream for the whole step, see `Run.generator`."""
        if device not in self._generators:
            self._generators[device] = self.run.generator(device, seed)
        return self._generators[device]

    def parameters(self, modality: str) -> list[nn.Parameter]:
        """Return the parameters of an encoder that have a gradient and that the method modulates."""
        named = self.run.parameters(modality)
        return [p for name, p in named if p.grad is not None and self.method.modulates(name, p)]


@attrs.define(eq=False)
class EpochData:
    """What `opt.end_epoch()` was given.

    Attributes:
        train: Loader of training batches, or ``None``.
        val: Loader of validation batches, or ``None``.
        metrics: ``{"loss": {modality: float}, "accuracy": {...}}``, or ``None``.
        forward: ``(model, batch) -> (logits, target)``.
    """

    train: Iterable[Any] | None
    val: Iterable[Any] | None
    metrics: Mapping[str, Mapping[str, float]] | None
    forward: Forwarder


def _first(value: Tensor) -> Tensor:
    return value[:1] if value.dim() else value


def _poison(value: Tensor) -> Tensor:
    return torch.full_like(value, torch.nan) if value.is_floating_point() else torch.zeros_like(value)


def default_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    """Return logits and target of a batch that ends with the target, on the device of the model.

    Raises:
        ConfigError: The batch is no list or tuple, so that nobody can tell its target.
    """
    if not isinstance(batch, list | tuple):
        raise ConfigError(
            f"A batch of a loader should be a tuple or list of inputs and, last, the target. Found "
            f"{type(batch).__name__}: pass `opt.end_epoch(..., forward=lambda model, batch: (logits, target))`."
        )
    device = next(model.parameters()).device
    *inputs, target = (_moved(item, device) for item in batch)
    return model(*inputs), target


def _moved(item: Any, device: torch.device) -> Any:
    # Packed sequences, and what tokenizers return, know themselves which of their tensors move.
    return item.to(device) if hasattr(item, "to") else map_tensors(item, lambda tensor: tensor.to(device))
