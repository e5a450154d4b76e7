"""What hooks receive: the run, a batch in the criterion, a step in `modulate()`, the data at the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance.errors import ObservationError
from modbalance.gradients import optimized

if TYPE_CHECKING:
    from modbalance.capture import Capture, Forward
    from modbalance.distributed import Ranks
    from modbalance.method import Method
    from modbalance.scores import Score
    from modbalance.telemetry import Telemetry
    from modbalance.topology import Topology
    from modbalance.unimodal import Unimodal

Forwarder = Callable[[nn.Module, Any], tuple[Tensor, Any]]


@attrs.define(eq=False)
class Run:
    """One training with one optimizer, as its methods see it.

    Attributes:
        modalities: Names of the modalities, in fusion order.
        epoch: Current epoch, 0-based.
        steps: Optimizer steps taken so far in which a method acted; a step that a GradScaler skips does not count.
        dry_run: Whether everything is computed and logged but nothing may change.
        topology: The model seen as encoders and fusion.
        capture: The hooks on the model.
        ranks: The ranks that train the model together.
        optimizer: The inner optimizer.
        loss_fn: The loss of the latest `opt.criterion`, ``scorer`` its score.
        should_stop: Set by a method that would end the training; users read `opt.should_stop`.
    """

    topology: Topology
    capture: Capture
    unimodal: Unimodal
    ranks: Ranks
    telemetry: Telemetry
    optimizer: Optimizer
    dry_run: bool = False
    epoch: int = 0
    steps: int = 0
    method: Method | None = None
    loss_fn: Callable[..., Tensor] | None = None
    scorer: Score | None = None
    should_stop: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in fusion order."""
        return self.topology.modalities

    @property
    def model(self) -> nn.Module | None:
        """The user's model without DDP or compile wrappers, ``None`` in the model-free form."""
        return self.topology.model

    def parameters(self, modality: str) -> list[tuple[str, nn.Parameter]]:
        """Return (name, parameter) of a modality's encoder, as far as this optimizer updates them.

        Raises:
            ConfigError: The encoder shares a parameter with that of another modality.
        """
        ours = {id(p) for p in optimized(self.optimizer)}
        return [(name, p) for name, p in self.topology.owned(modality) if id(p) in ours]

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next(optimized(self.optimizer)).device

    def evaluate(self, loader: Iterable[Any], forward: Forwarder) -> Iterator[Batch]:
        """Yield a batch with features, logits and target for each batch of a loader, in eval mode and without graph.

        Training flags, buffers and the RNG of the model's forward are left as they were; methods replace nothing.
        """
        assert self.model is not None
        for item in loader:
            watching, preserved = self.capture.watching(), self.topology.preserved([self.model], training=False)
            with torch.no_grad(), preserved, watching as seen:
                logits, target = forward(self.model, item)
            yield Batch(
                self,
                forward=seen,
                features=seen.features,
                logits=logits,
                target=target,
                task_loss=None if self.loss_fn is None else partial(_loss_of, self.loss_fn, target),
                scorer=self.scorer,
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks; for use outside of a step, where statistics are summed by the core."""
        return self.ranks.sum([tensor])[0]

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over ranks."""
        return self.sum(tensor) / self.ranks.count

    def log(self, name: str, value: Tensor | float) -> None:
        """Keep the latest value of a quantity, such as ``kappa/audio``, for `opt.metrics()`; no host read."""
        self.telemetry.log(f"{self._prefix}/{name}", value)

    def count(self, name: str, increment: Tensor) -> None:
        """Add a 0-dim tensor to a counter of `opt.metrics()`; no host read."""
        self.telemetry.count(f"{self._prefix}/{name}", increment)

    def generator(self, device: torch.device, seed: int) -> torch.Generator:
        """Return a generator for the current step: its stream depends on ``seed`` and ``steps`` alone.

        Two ranks, or a run and its resumption, therefore draw the same numbers, and a step that never happens takes
        no numbers away from the next one.
        """
        # Odd multiplier (2^64 / golden ratio) so that neighbouring seeds and steps do not share streams.
        key = (seed * 0x9E3779B97F4A7C15 + self.steps) % 2**63
        return torch.Generator(device).manual_seed(key)

    @property
    def _prefix(self) -> str:
        return self.method.name if self.method else "modbalance"


@attrs.define(eq=False)
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
    """

    run: Run
    forward: Forward | None = None
    features: Mapping[str, Tensor] = attrs.field(factory=dict)
    logits: Tensor = attrs.field(factory=lambda: torch.empty(0))
    target: Any = None
    task_loss: Callable[[Tensor], Tensor] | None = None
    scorer: Score | None = None
    present: Mapping[str, Tensor] = attrs.field(factory=dict)
    given_logits: Mapping[str, Tensor] | None = None
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
            args, kwargs = tuple(_first(each) for each in args), {key: _first(each) for key, each in kwargs.items()}
        with self.run.capture.watching() as seen:
            topology.rerun(forward, args, kwargs, training=False)
        return seen.features

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
        if not self.features:
            raise ObservationError(self.run.topology.explain_missing_features())
        return self.features

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of the forward; none where no forward was seen."""
        return nullcontext() if self.forward is None else self.forward.autocast()

    def score(self, logits: Tensor, modality: str | None = None) -> tuple[Tensor, Tensor]:
        """Return (sum of the scores of ``logits``, number of elements that count), both 0-dim fp32, without graph.

        Elements that are ignored, or whose sample lacks ``modality``, count in neither.
        """
        assert self.scorer is not None
        with torch.no_grad():
            score, mask = self.scorer(logits, self.target)
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


def _loss_of(loss_fn: Callable[..., Tensor], target: Any, logits: Tensor) -> Tensor:
    return loss_fn(logits, target)


def _first(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) and value.dim() else value
