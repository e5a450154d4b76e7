"""The arguments of hooks: the run, a batch in the criterion, a step in `modulate()`, the data of an epoch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.optim import Adagrad

from modbalance._model import compiled
from modbalance._model.forward import Forward, map_tensors, tensors_in
from modbalance._model.graphs import refuse_in_capture
from modbalance._model.rerun import preserved, unsynchronized
from modbalance._model.structure import Part, resolve
from modbalance._nested import nested
from modbalance._reporting import depth_of_caller
from modbalance._steps import idle_step
from modbalance._terms import Key, Term, require_whole
from modbalance._training import Training
from modbalance.errors import ConfigError, ModbalanceWarning, ObservationError
from modbalance.gradients import optimized
from modbalance.method import Method
from modbalance.scores import Score, kind_of, of_each, row_mask
from modbalance.shadow import Shadow
from modbalance.sharding import reshard

__all__ = ["Batch", "EpochData", "Forwarder", "Run", "Step", "default_forward"]

Forwarder = Callable[[nn.Module, Any], tuple[Tensor, Any]]


@attrs.frozen(eq=False)
class Run:
    """One training with one optimizer, for one method: values are logged under its name."""

    _training: Training
    _prefix: str = "modbalance"

    # The training

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in fusion order."""
        return self._training.structure.modalities

    @property
    def epoch(self) -> int:
        """Current epoch, 0-based."""
        return self._training.epoch

    @property
    def steps(self) -> int:
        """Optimizer steps so far in which a method acted; a step that a GradScaler skips does not count."""
        return self._training.steps

    @property
    def dry_run(self) -> bool:
        """Whether everything is computed and logged but nothing may change."""
        return self._training.dry_run

    @property
    def loss_fn(self) -> Callable[..., Tensor] | None:
        """The loss of the latest `opt.criterion`; ``None`` before."""
        return self._training.loss_fn

    @property
    def forward(self) -> Forwarder:
        """From model and batch to logits and target, as `opt.begin` was given it; else `default_forward`."""
        return self._training.forward or default_forward

    def stop(self) -> None:
        """Set `opt.should_stop`: the method would end the training here. Nothing stops by itself."""
        self._training.should_stop = True

    # The model

    @property
    def model(self) -> nn.Module | None:
        """The user's model without DDP or compile wrappers, ``None`` in the model-free form."""
        return self._training.structure.model

    @property
    def device(self) -> torch.device:
        """Device of the optimizer's first parameter."""
        return next(optimized(self._training.optimizer)).device

    @property
    def fusion_modules(self) -> Sequence[nn.Module]:
        """Modules of `fusion=`, applied in sequence; empty where it is a callable or not given."""
        return self._training.structure.fusion

    @property
    def fusion_callable(self) -> Callable[..., Tensor] | None:
        """`fusion=` where it is a callable from features to logits."""
        return self._training.structure.fusion_callable

    @property
    def sole_fusion_layer(self) -> nn.Module | None:
        """The layer that holds all of the fusion's parameters, if there is one."""
        return self._training.structure.sole_fusion_layer()

    @property
    def feature_sizes(self) -> Mapping[str, int]:
        """`feature_sizes=` by modality; empty where it was not given."""
        sizes = self._training.structure.feature_sizes
        return {} if sizes is None else dict(zip(self.modalities, sizes, strict=True))

    @property
    def has_own_heads(self) -> bool:
        """Whether `unimodal=` names heads of each modality, or a callable that has them."""
        return self._training.unimodal.kind in ("heads", "callable")

    def provide_unimodal_logits(self, source: Callable[[Batch], Mapping[str, Tensor]]) -> None:
        """Let all methods take the unimodal logits of a batch from a function, with graph; not in a dry run.

        For a method that replaces the head, to which slices of the old one say nothing. Call it in the setup.
        """
        if not self.dry_run:
            self._training.unimodal_source = source

    def module(self, part: Part, what: str) -> nn.Module:
        """Return the submodule of the model that a path names, or the module itself.

        Args:
            part: Path or module.
            what: Its name in messages, such as "Option `head`".

        Raises:
            ConfigError: There is no such submodule.
        """
        return resolve(part, self.model, what)

    def encoders(self, modality: str) -> Sequence[nn.Module]:
        """Return the modules of a modality's encoder; empty where parameter groups name the modalities."""
        return self._training.structure.encoders.get(modality, [])

    def encoder_parameters(self, modality: str) -> list[tuple[str, nn.Parameter]]:
        """Return (name, parameter) of a modality's encoder, whether this optimizer updates them or not.

        Raises:
            ConfigError: The encoder shares a parameter with that of another modality.
        """
        return self._training.structure.owned(modality)

    def parameters(self, modality: str) -> list[tuple[str, nn.Parameter]]:
        """Return (name, parameter) of a modality's encoder, as far as this optimizer updates them.

        Raises:
            ConfigError: The encoder shares a parameter with that of another modality.
        """
        return [*self._training.ownership.parameters(self.epoch)[modality]]

    # The inner optimizer

    def optimized_parameters(self) -> Iterator[Tensor]:
        """Yield every parameter of the inner optimizer, in its order."""
        return optimized(self._training.optimizer)

    def optimizer_state(self) -> dict[str, Any]:
        """Return the state dict of the inner optimizer."""
        return self._training.optimizer.state_dict()

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Restore the inner optimizer from such a state dict."""
        self._training.optimizer.load_state_dict(state)

    @property
    def can_clear_optimizer_state(self) -> bool:
        """Whether the inner optimizer makes the state of a parameter anew; Adagrad does so only when it is built."""
        return not any(isinstance(each, Adagrad) for each in nested(self._training.optimizer))

    @property
    def has_two_passes(self) -> bool:
        """Whether a step of the inner optimizer takes gradients at two places, as that of SAM does."""
        return hasattr(self._training.optimizer, "second_step")

    def clear_optimizer_state(self, parameters: Iterable[Tensor]) -> None:
        """Drop the inner optimizer's state of some parameters, such as momentum, wherever in it that lies."""
        states = [each.state for each in nested(self._training.optimizer)]
        for parameter in parameters:
            for state in states:
                state.pop(parameter, None)

    def shadow(self, module: nn.Module) -> Shadow:
        """Return a copy of a module's parameters and optimizer state that takes steps ahead of the optimizer's own.

        For a method that steps a module several times for a batch. In ``modbalance_takeover``: ``begin()``, then any
        number of outputs ``shadow(x)``, ``gradients(loss)`` and ``step(gradients)``, and
        ``with_zero_gradients(loss)`` as the loss; in ``modbalance_gradients``: ``drop_gradients()``; in
        ``modbalance_after_step``: ``commit()``. Call this in the setup.

        Raises:
            ConfigError: The optimizer cannot step single parameters ahead of the others (LBFGS, SAM, schedule-free, one
                that shards its state), the gradients are clipped jointly, the parameters are sharded, or none of them
                is trained.
        """
        return Shadow(self._training, module, self._prefix)

    def idle_step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let the inner optimizer step parameters once more, along zeros, by momentum and weight decay alone.

        Those without a gradient are left alone. For ``modbalance_after_step``; in a dry run nothing happens.
        """
        if not self.dry_run:
            idle_step(self._training.optimizer, parameters)

    # Ranks

    @property
    def rank(self) -> int:
        """Rank of this process among those that train the model together, 0 without torch.distributed."""
        return self._training.ranks.rank

    @property
    def ranks(self) -> int:
        """Number of processes that train the model together, 1 without torch.distributed."""
        return self._training.ranks.count

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks; for use outside of a step, where statistics are summed by the core."""
        return self.sums([tensor])[0]

    def sums(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sum of each tensor over ranks, in one all-reduce; shapes and dtypes are kept."""
        self._training.ranks.refuse_uneven(self._prefix)
        return self._training.ranks.sum(tensors)

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over ranks."""
        return self.sum(tensor) / self._training.ranks.count

    def means(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean of each tensor over ranks, in one all-reduce; shapes and dtypes are kept."""
        count = self._training.ranks.count
        return self.sums(tensors) if count == 1 else [total / count for total in self.sums(tensors)]

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, in rank order; ranks may hold different numbers of rows."""
        self._training.ranks.refuse_uneven(self._prefix)
        return self._training.ranks.gather_rows(rows)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return the tensor of rank 0, on every rank; in place."""
        return self._training.ranks.broadcast(tensor)

    # Data outside of steps

    def run_model(
        self, item: Any, forward: Forwarder, *, training: bool | None = False, keep_buffers: bool = False
    ) -> Batch:
        """Return a batch with features, logits and target of data of the method's own, with graph.

        The bare model runs, without autocast and without compiled code, so that it can be differentiated twice;
        synchronized batch norms use the samples of this rank, which should be those of all where buffers are kept.
        Training flags and the RNG are left as they were; methods replace nothing. Call it in the epoch hooks.

        Args:
            item: A batch as a loader yields it.
            forward: ``(model, item) -> (logits, target)``, as `EpochData.forward`.
            training: Mode of the forward; ``None``: as the modules are.
            keep_buffers: Whether buffers, such as running statistics, keep what the forward makes of them; they never
                do in a dry run.
        """
        assert self.model is not None
        plain, alone = torch.autocast(self.device.type, enabled=False), unsynchronized(self.model)
        unchanged = preserved([self.model], training, buffers=self.dry_run or not keep_buffers)
        separately = self._training.watch.separately()
        with torch.enable_grad(), plain, alone, compiled.uncompiled(), unchanged, separately as seen:
            logits, target = forward(self.model, item)
        seen.is_local = True
        return self._batch_of(seen, logits, target)

    def _batch_of(self, seen: Forward, logits: Tensor, target: Any) -> Batch:
        if not isinstance(logits, Tensor):
            raise ConfigError(
                f"The forward of a loader's batches should return logits and target, the logits as a tensor. Found "
                f"{type(logits).__name__}: pass `forward=lambda model, batch: (logits, target)` to `opt.begin` and "
                "`opt.end_epoch`, where the logits are picked out of what the model returns."
            )
        loss_fn = self.loss_fn
        return Batch(
            self,
            forward=seen,
            features=seen.features,
            logits=logits,
            target=target,
            task_loss=None if loss_fn is None else partial(_loss_of, loss_fn, target),
            scorer=self._training.scorer,
        )

    def evaluate(self, loader: Iterable[Any], forward: Forwarder) -> Iterator[Batch]:
        """Yield a batch with features, logits and target for each batch of a loader, in eval mode and without graph.

        Training flags, buffers and the RNG of the model's forward are left as they were; methods replace nothing.
        """
        assert self.model is not None
        for item in loader:
            separately = self._training.watch.separately()
            with torch.no_grad(), preserved([self.model], training=False), separately as seen:
                logits, target = forward(self.model, item)
            reshard(self.model)  # weights that a forward without backward leaves whole are copies
            yield self._batch_of(seen, logits, target)

    # Reports and randomness

    def log(self, name: str, value: Tensor | float) -> None:
        """Keep the latest value of a quantity, such as ``kappa/audio``, for `opt.metrics()`; no host read."""
        self._training.telemetry.log(f"{self._prefix}/{name}", value)

    def count(self, name: str, increment: Tensor, warning: str | None = None) -> None:
        """Add a 0-dim tensor to a counter of `opt.metrics()`, which gives ``warning`` once if it is above 0."""
        self._training.telemetry.count(f"{self._prefix}/{name}", increment, warning)

    def log_each(self, name: str, values: Iterable[Tensor | float]) -> None:
        """Log one value for each modality in order, as ``name/<modality>``."""
        for modality, value in zip(self.modalities, values, strict=True):
            self.log(f"{name}/{modality}", value)

    def count_each(self, name: str, increments: Tensor, warning: str | None = None) -> None:
        """Add to the counters ``name/<modality>`` the elements of a tensor (M,), as `count` does, in one operation."""
        keys = [f"{self._prefix}/{name}/{modality}" for modality in self.modalities]
        self._training.telemetry.count_all(keys, increments, warning)

    def warn(self, message: str) -> None:
        """Give a ModbalanceWarning that points at the user's line."""
        warnings.warn(message, ModbalanceWarning, stacklevel=depth_of_caller())

    def generator(self, device: torch.device, seed: int, shard: int = 0) -> torch.Generator:
        """Return a generator for the current step: its stream depends on ``seed``, ``steps`` and ``shard`` alone.

        Two ranks, or a run and its resumption, therefore draw the same numbers, and a step that never happens takes
        no numbers away from the next one. For the parts of sharded tensors, ``shard`` is one of `sharding.shards_of`.
        """
        refuse_in_capture("random numbers that depend on the number of the step, which is counted in Python")
        # Odd multiplier (2^64 / golden ratio) so that neighbouring seeds and steps do not share streams.
        # Another one, also from Weyl sequences in use, for shards.
        key = (seed * 0x9E3779B97F4A7C15 + shard * 0xD1342543DE82EF95 + self.steps) % 2**63
        return torch.Generator(device).manual_seed(key)


# A dataclass: dynamo cannot build an attrs class with factories inside a compiled forward.
@dataclass(eq=False)
class Batch:
    """One call of the criterion, or the forward that leads to it.

    Attributes:
        run: The run.
        features: By modality, (B, ..., D_i), with graph; empty where no hook and no user gave them.
        logits: Fused logits, with graph.
        target: Target as given to the criterion.
        loss: The user's loss of the fused logits, 0-dim, with graph; known from ``modbalance_losses`` on.
        task_loss: The user's loss as a function of logits, with the target and further arguments of this call.
        present: By modality, boolean (B,): the samples that have this modality; a modality left out has all.
        index: Number of this batch among the micro-batches of its step, from 0.

    The core alone uses ``forward`` (record of the model's forward, ``None`` in the model-free form), ``scorer`` and
    ``given_logits`` (unimodal logits of the user).
    """

    run: Run
    forward: Forward | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    target: Any = None
    loss: Tensor | None = None
    task_loss: Callable[[Tensor], Tensor] | None = None
    scorer: Score | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)
    given_logits: Mapping[str, Tensor] | None = None
    index: int = 0
    _unimodal_logits: dict[str, Tensor] = field(default_factory=dict)
    _caches: dict[str, dict[str, Any]] = field(default_factory=dict)
    _terms: dict[str, list[Term]] = field(default_factory=dict)

    def _seen_by(self, run: Run) -> Batch:
        """Return this batch for another method: same tensors, and unimodal logits that are computed once for all."""
        view = object.__new__(type(self))  # `copy.copy` takes several times as long
        view.__dict__.update(self.__dict__)
        view.run = run
        return view

    @property
    def cache(self) -> dict[str, Any]:
        """A place where an earlier hook of this method leaves values for a later one on the same batch."""
        return self._caches.setdefault(self.run._prefix, {})

    @property
    def kind(self) -> Literal["classes", "labels", "numbers"]:
        """What the logits are of, as far as a loss of torch or a preset of scores tells; else classes."""
        return kind_of(self.run.loss_fn, self.scorer)

    def require_kind(self, *kinds: str, what: str) -> None:
        """Raise a ConfigError unless `kind` is one of these.

        Args:
            kinds: The kinds that the method is defined for.
            what: What the method does that others do not have, such as "compares features with means of classes".
        """
        if self.kind not in kinds:
            loss_fn = self.run.loss_fn
            name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
            raise ConfigError(
                f"Method `{self.run._prefix}` {what}, and needs targets that are {' or '.join(kinds)}. Found a loss or "
                f"a score of {self.kind}, {name}: use another method."
            )

    @property
    def unimodal_logits(self) -> Mapping[str, Tensor]:
        """Logits of each modality alone, (B, C, ...) each, without graph; computed once, on first use.

        Raises:
            ObservationError: Neither the features nor the logits were seen or given.
        """
        if not self._unimodal_logits:
            with torch.no_grad():
                self._unimodal_logits.update(self.given_logits or self._computed_logits())
        return self._unimodal_logits

    def unimodal_logits_live(self, frozen_head: bool = True, *, auto: str = "auto") -> Mapping[str, Tensor]:
        """Logits of each modality alone, with graph to the encoders.

        Args:
            frozen_head: Whether the fusion's parameters act as constants.
            auto: What ``unimodal="auto"`` means for the method: ``"zero"`` keeps the head's full bias.
        """
        with self.run._training.unimodal.frozen_head() if frozen_head else nullcontext():
            return self.given_logits or self._computed_logits(live=True, auto=auto)

    def _computed_logits(self, *, live: bool = False, auto: str = "auto") -> Mapping[str, Tensor]:
        source, unimodal = self.run._training.unimodal_source, self.run._training.unimodal
        if source is not None:
            logits = source(self)
            return logits if live else {name: each.detach() for name, each in logits.items()}
        return unimodal.logits(self.require_features(), self.logits, self.forward, live=live, auto=auto)

    def term_gradients(
        self,
        terms: Callable[[Batch], Mapping[str, Tensor]],
        heads: Mapping[str, nn.Module] | None = None,
    ) -> Mapping[str, Tensor]:
        """Compute a loss term for each modality, and have its gradient by the encoder gathered: `Step.term_gradients`.

        The terms are returned with graph to all heads, and without graph to the encoders: add them to the loss to
        train heads of the user's model. Call it in ``modbalance_losses``. Gradients are taken when the user's backward
        begins, in one more backward of each encoder.

        Args:
            terms: Receives this batch with leaves in the place of the features, and returns 0-dim terms by modality,
                each a function of the feature of its modality.
            heads: By modality, modules beside the user's model whose gradients are gathered, too.

        Raises:
            ConfigError: An encoder is sharded by `fully_shard`.
            ObservationError: The features were neither seen nor given.
        """
        features = self.require_features()
        leaves = {name: z.detach().requires_grad_() for name, z in features.items()}
        cut = self._seen_by(self.run)
        cut.features, cut._unimodal_logits, cut.given_logits = leaves, {}, None
        values = terms(cut)
        listed = self._terms.setdefault(self.run._prefix, [])
        for modality, value in values.items():
            named = self.run.parameters(modality)
            require_whole(named)
            encoder = {name: p for name, p in named if p.requires_grad}
            module = None if heads is None else heads.get(modality)
            head = {} if module is None else {name: p for name, p in module.named_parameters() if p.requires_grad}
            listed.append(Term(modality, value, leaves[modality], features[modality], encoder, head))
        return values

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
        rerun, structure = self.run._training.rerun, self.run._training.structure
        if remove == "features":
            kept = {name: f if name in subset else torch.zeros_like(f) for name, f in self.require_features().items()}
            return rerun.fuse(kept, self.forward, training=training)
        forward = self._require_inputs()
        args, kwargs = structure.inputs.masked(*(forward.inputs or ((), {})), structure.modalities, subset)
        with self.run._training.watch.paused():
            return rerun.model(forward, args, kwargs, training=training)

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the fused logits of other features, with graph: the fusion runs again as in the forward.

        Its buffers and the random state are left as they were: running statistics are those of the forward alone.

        Args:
            features: By modality, (B, ..., D_i).
        """
        return self.run._training.rerun.fuse(features, self.forward)

    def _require_inputs(self) -> Forward:
        """Return the forward with the model's inputs, or raise an ObservationError with the way to have them seen."""
        if self.forward is None or self.forward.inputs is None:
            raise ObservationError(
                "Removing a modality at the input needs the forward of the model to be seen. Found none: pass "
                "`model=` to BalancedOptimizer and call the model itself, not its parts. If it is compiled, "
                f"{compiled.FIX}."
            )
        return self.forward

    def require_features(self) -> Mapping[str, Tensor]:
        """Return the features, or raise an ObservationError with the way to have them seen."""
        missing = [name for name in self.run.modalities if name not in self.features]
        if missing:
            structure = self.run._training.structure
            ran = self.forward is not None and self.forward.inputs is not None
            raise ObservationError(structure.explain_missing_features(missing if self.features else [], ran=ran))
        return self.features

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of the forward; none where no forward was seen."""
        return nullcontext() if self.forward is None else self.forward.autocast()

    def where_present(self, modality: str, tensor: Tensor) -> Tensor:
        """Return an equal tensor, (B, ...), whose gradient stops at the samples that lack the modality."""
        there = self.present.get(modality)
        if there is None:
            return tensor
        return torch.where(row_mask(there, tensor), tensor, tensor.detach())

    def losses(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the user's loss of the logits of each modality, 0-dim; no gradient reaches samples that lack it.

        Raises:
            ConfigError: The user computed the loss, so that it cannot be taken of other logits.
        """
        if self.task_loss is None:
            raise ConfigError(
                f"Method `{self.run._prefix}` calls the loss on unimodal logits. Found a loss that is computed "
                "already: use `opt.criterion(loss_fn)`, not `opt.observe`."
            )
        return {name: self.task_loss(self.where_present(name, each)) for name, each in logits.items()}

    def scores(
        self, logits: Mapping[str, Tensor], of: Callable[[Tensor], Tensor] | None = None, *, live: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return `score` of the logits of each modality, sums and numbers (M,) each, in one softmax where that does."""
        assert self.scorer is not None
        with torch.set_grad_enabled(live and torch.is_grad_enabled()):
            found = None if self.present else of_each(self.scorer, [*logits.values()], self.target)
            if found is None:
                pairs = [self.score(each, name, of, live=live) for name, each in logits.items()]
                return torch.stack([total for total, _ in pairs]), torch.stack([count for _, count in pairs])
            score, mask = found
            score = score if of is None else of(score)
            if mask is None:
                return score.flatten(1).sum(1), score.new_full((len(score),), score[0].numel())
            total = score.where(mask, 0).flatten(1).sum(1)
            return total, mask.sum(dtype=score.dtype).expand(len(total))

    def score(
        self,
        logits: Tensor,
        modality: str | None = None,
        of: Callable[[Tensor], Tensor] | None = None,
        *,
        live: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return (sum of the scores of ``logits``, number of elements that count), both 0-dim.

        Elements that are ignored, or whose sample lacks ``modality``, count in neither.

        Args:
            logits: (B, C, ...).
            modality: Whose logits they are; ``None``: the fused ones.
            of: Turns the score of each element into the summand, such as its logarithm.
            live: Whether the sum keeps the graph to the logits.
        """
        assert self.scorer is not None
        with torch.set_grad_enabled(live and torch.is_grad_enabled()):
            score, mask = self.scorer(logits, self.target)
            score = score if of is None else of(score)
            there = self.present.get(modality) if modality else None
            if there is not None:
                there = row_mask(there, score).expand_as(score)
                mask = there if mask is None else mask & there
            if mask is None:
                return score.sum(), score.new_full((), score.numel())
            return score.where(mask, 0).sum(), mask.sum(dtype=score.dtype)


@attrs.define(eq=False)
class Step:
    """One optimizer step, for one method.

    Attributes:
        run: The run.
        method: The method.
        stats: Sums that this method's ``modbalance_observe`` returned, added over micro-batches and ranks.
        coefficients: Coefficients of this method that were applied, 0-dim, by modality.
        cache: A place where an earlier hook of this method leaves values for a later one in the same step.
        terms: Gradients of loss terms; read them by `term_gradients` and `head_gradients`.
    """

    run: Run
    method: Method
    stats: Mapping[str, Tensor]
    coefficients: Mapping[str, Tensor] = attrs.field(factory=dict)
    cache: dict[str, Any] = attrs.field(factory=dict)
    terms: Mapping[Key, Tensor] = attrs.field(factory=dict)
    _generators: dict[tuple[torch.device, int], torch.Generator] = attrs.field(factory=dict)
    _modulated: Mapping[str, list[nn.Parameter]] | None = None

    def generator(self, device: torch.device, seed: int, shard: int = 0) -> torch.Generator:
        """Return this step's generator on ``device``: one stream for the whole step, see `Run.generator`."""
        if (device, shard) not in self._generators:
            self._generators[device, shard] = self.run.generator(device, seed, shard)
        return self._generators[device, shard]

    def parameters(self, modality: str) -> list[nn.Parameter]:
        """Return the parameters of an encoder that have a gradient and that the method modulates."""
        if self._modulated is None:
            self._modulated = self.run._training.ownership.modulated(self.method, self.run.epoch)
        return [p for p in self._modulated[modality] if p.grad is not None]

    def term_gradients(self, modality: str) -> list[tuple[nn.Parameter, Tensor]]:
        """Return (parameter, gradient of its modality's term) of an encoder, see `Batch.term_gradients`.

        They are as the gradients of parameters are: sums over micro-batches, means over ranks, unscaled where a
        GradScaler has unscaled these, and scaled by coefficients. Parameters without a gradient are left out. The
        tensors are the method's own, which it may change.
        """
        named = [(name, p) for name, p in self.run.parameters(modality) if p.grad is not None]
        return [(p, u) for name, p in named if (u := self.terms.get(("encoder", modality, name))) is not None]

    def head_gradients(self, modality: str) -> Mapping[str, Tensor]:
        """Return the gradients of the parameters in ``heads`` of `Batch.term_gradients`, by name."""
        return {name: u for (kind, of, name), u in self.terms.items() if (kind, of) == ("head", modality)}


@attrs.define(eq=False)
class EpochData:
    """Arguments of `opt.end_epoch()` and `opt.begin()`.

    Attributes:
        train: Loader of training batches, or ``None``.
        val: Loader of validation batches, or ``None``.
        metrics: ``{"loss": {modality: float}, "accuracy": {...}}``, or ``None``; always so in `opt.begin()`.
        forward: ``(model, batch) -> (logits, target)``.
    """

    train: Iterable[Any] | None
    val: Iterable[Any] | None
    metrics: Mapping[str, Mapping[str, float]] | None
    forward: Forwarder


def default_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    """Return logits and target of a batch that ends with the target, on the device of the model.

    Floating-point inputs have the type of the model's parameters, where these are all of one: in a training in double
    or half precision, the loader may yield single precision.

    Raises:
        ConfigError: The batch is no list or tuple, so that its target is not known.
    """
    if not isinstance(batch, list | tuple):
        raise ConfigError(
            f"A batch of a loader should be a tuple or list of inputs and, last, the target. Found "
            f"{type(batch).__name__}: pass `opt.end_epoch(..., forward=lambda model, batch: (logits, target))`."
        )
    parameters = [*model.parameters()]
    *inputs, target = (_moved(item, parameters[0].device) for item in batch)
    types = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
    if len(types) == 1:
        inputs = [_converted(item, next(iter(types))) for item in inputs]
    return model(*inputs), target


def _moved(item: Any, device: torch.device) -> Any:
    # Packed sequences, and the mappings that tokenizers return, move by a method of their own.
    return item.to(device) if hasattr(item, "to") else map_tensors(item, lambda tensor: tensor.to(device))


def _converted(item: Any, dtype: torch.dtype) -> Any:
    if all(not tensor.is_floating_point() or tensor.dtype == dtype for tensor in tensors_in(item)):
        return item  # as it is: mappings of a class of their own stay that
    return map_tensors(item, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _loss_of(loss_fn: Callable[..., Tensor], target: Any, logits: Tensor) -> Tensor:
    return loss_fn(logits, target)
