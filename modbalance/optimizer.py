"""BalancedOptimizer: wraps a torch optimizer so that methods of balanced multimodal learning modulate the training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from modbalance import gradients
from modbalance._checkpoint import Checkpoint
from modbalance._clip import Clip
from modbalance._joint import JointOptimizer
from modbalance._lifecycle import Lifecycle
from modbalance._model.forward import Inputs, Place
from modbalance._model.rerun import Rerun
from modbalance._model.structure import Fusion, Parts, Structure
from modbalance._model.unimodal import Unimodal, UnimodalSpec
from modbalance._model.watch import Watch
from modbalance._plugins import MethodSpec, build_methods
from modbalance._ranks import Ranks
from modbalance._reporting import PRESET_CLIPS, Telemetry
from modbalance._training import Training
from modbalance._uneven import UnevenInputs
from modbalance._update import Update
from modbalance._wrapper import Wrapper, with_step_hooks
from modbalance.context import EpochData, default_forward
from modbalance.criterion import Criterion, LogitsOf
from modbalance.diagnosis import Diagnosis, diagnose_training
from modbalance.errors import ConfigError
from modbalance.method import Preset
from modbalance.scores import Score

__all__ = ["BalancedOptimizer"]


class BalancedOptimizer(Wrapper):
    """Wraps an optimizer so that a method of balanced multimodal learning modulates the training.

    A step does, in this order:

    1. run the closure, if there is one;
    2. `modulate()`, unless it was called by hand: reduce the statistics over ranks, apply the coefficients of each
       method, let each method edit gradients;
    3. clip the joint gradient norm, if `clip_grad_norm` is set;
    4. step the inner optimizer;
    5. commit the state of the methods.

    Learning-rate schedulers, GradScaler, DDP, `torch.compile` and checkpointing take it like any optimizer. Parameter
    groups, state and defaults are those of the inner optimizer, shared, not copied.

    Args:
        inner: The optimizer that updates the parameters, or several with disjoint parameters, such as Muon and AdamW.
        method: A name (`modbalance methods` shows them; ``"none"`` changes nothing), a `Method` object, or a list of
            either. Methods of a list act in its order.
        model: The model: bare, wrapped by DDP or compiled. Paths are those of the bare module.
        modalities: Encoder of each modality, in fusion order: a path, a module or a list of them. Without it,
            parameter groups carry a key ``"modality"``.
        fusion: Where unimodal features become logits: a path, a module, a list applied in sequence, or a callable.
        feature_sizes: Sizes of the parts where the fusion receives one concatenated tensor, by modality or in order.
        inputs: Which arguments of the model's forward belong to a modality; default: positional, in order.
        mask_value: Fill value of a removed input; a number, or a number by modality.
        unimodal: How unimodal logits are obtained: ``"auto"``, ``"slice"``, ``"zero"``, a mapping to own heads, or a
            callable from features to logits; see docs/usage.md.
        preset: ``"official"``, the authors' code, or ``"paper"``, where the paper differs from its code.
        apply: ``"gradient"``: coefficients scale gradients, as in the papers' code; ``"update"``: they scale the
            update that the inner optimizer makes of unmodulated, clipped gradients, without its decoupled weight decay.
            For methods that give coefficients; see docs/usage.md.
        clip_grad_norm: Largest joint L2 norm of the gradients, > 0; larger ones are scaled down after modulation.
            ``None``: that of the method's preset, else no clip.
        dry_run: Compute and log everything, and change nothing.
        check_finite: Raise when a loss is not finite, at the price of one host read per step.
        options: The method's options, where ``method`` is a name.

    Raises:
        ConfigError: An argument or an option does not fit; the message names the fix.
        UnknownMethodError: No installed plugin offers the method.
        PluginConflictError: Two installed plugins offer it.
        PluginLoadError: Its plugin cannot be loaded.
    """

    def __init__(
        self,
        inner: Optimizer | Sequence[Optimizer],
        method: MethodSpec,
        *,
        model: nn.Module | None = None,
        modalities: Mapping[str, Parts] | None = None,
        fusion: Fusion | None = None,
        feature_sizes: Mapping[str, int] | Sequence[int] | None = None,
        inputs: Mapping[str, Place | Sequence[Place]] | None = None,
        mask_value: float | Mapping[str, float] = 0.0,
        unimodal: UnimodalSpec = "auto",
        preset: Preset = "official",
        apply: Literal["gradient", "update"] = "gradient",
        clip_grad_norm: float | None = None,
        dry_run: bool = False,
        check_finite: bool = False,
        **options: Any,
    ) -> None:
        inner = _one_optimizer(inner)
        if apply not in ("gradient", "update"):
            raise ConfigError(f"Parameter `apply` should be 'gradient' or 'update'. Found `apply = {apply!r}`.")
        if clip_grad_norm is not None and not clip_grad_norm > 0:
            raise ConfigError(f"Parameter `clip_grad_norm` should be > 0. Found `clip_grad_norm = {clip_grad_norm}`.")
        super().__init__(inner)
        structure = Structure(inner, model, modalities, fusion, feature_sizes, Inputs(inputs, mask_value))
        ranks = Ranks(model)
        watch = Watch(structure)
        rerun = Rerun(structure, watch)
        unimodal_logits = Unimodal(unimodal, structure, rerun, ranks)
        training = Training(structure, watch, rerun, unimodal_logits, ranks, Telemetry(), inner, dry_run)
        training.update = Update(inner) if apply == "update" else None
        methods = build_methods(method, preset, options)
        clips = [clip for each in methods if (clip := each.preset_clips.get(each.preset)) is not None]
        self._clip = training.clip = Clip(clip_grad_norm, None if dry_run else min(clips, default=None))
        self._lifecycle = Lifecycle(methods, training, check_finite=check_finite)

    # Training

    def criterion(
        self, loss_fn: Callable[..., Tensor], *, logits_of: LogitsOf | None = None, score: Score | str | None = None
    ) -> Criterion:
        """Return a loss function through which the methods observe training batches.

        Args:
            loss_fn: The user's loss, called as ``loss_fn(logits, target, *args, **kwargs)``.
            logits_of: Place of the logits in the model's output: a key, an attribute, an index or a callable.
            score: Measure of how well a modality does: ``None`` (softmax probability of the target class),
                ``"binary"``, ``"multilabel"``, ``"regression"``, or a callable `(logits, target) -> (score, mask)`.
        """
        criterion = Criterion(self._lifecycle, loss_fn, logits_of, score)
        self._lifecycle.set_loss(loss_fn, criterion.score)
        return criterion

    def observe(
        self,
        loss: Tensor,
        *,
        logits: Tensor,
        target: Any,
        features: Mapping[str, Tensor] | None = None,
        unimodal_logits: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        score: Score | str | None = None,
    ) -> Tensor:
        """Return ``loss`` and let the methods observe it; for losses computed inside the model or of many terms.

        Arguments are those of the criterion, see `modbalance.criterion.Criterion.forward`.
        """
        given = {"features": features, "unimodal_logits": unimodal_logits, "present": present}
        return Criterion(self._lifecycle, _no_loss, None, score).observe(loss, logits, target, **given)

    def modulate(self) -> None:
        """Turn gradients into modulated gradients, once per step; needed only before a clip by hand."""
        self._lifecycle.modulate()

    @with_step_hooks
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step: closure, modulate, clip, inner step, commit. Returns what the inner step returns.

        A closure goes on to the inner optimizer, which decides when and how often it calls it; every gradient that it
        leaves is modulated. An optimizer of two passes (SAM, with `first_step` and `second_step`) takes its first pass
        from the gradients that stand, which are modulated as well.
        """
        has_two_passes = self._lifecycle.run.has_two_passes
        if (update := self._lifecycle.training.update) is not None:
            update.begin()
        if closure is None or has_two_passes:
            self._before_inner_step()
        if closure is not None and has_two_passes:
            self._lifecycle.drop_pending()
        result = self._inner.step() if closure is None else self._inner.step(lambda: self._evaluate(closure))
        self._after_inner_step()
        return result

    def begin(
        self,
        *,
        train: Iterable[Any] | None = None,
        val: Iterable[Any] | None = None,
        forward: Callable[[nn.Module, Any], tuple[Tensor, Any]] | None = None,
    ) -> None:
        """Let methods look at data before the first step, where they need it in epoch 0; others do nothing.

        A call after the first step of a method or the first epoch, or after the state of a training that had begun
        was loaded, does nothing.

        Args:
            train: Loader of training batches.
            val: Loader of validation batches.
            forward: As for `end_epoch`.
        """
        self._lifecycle.begin(EpochData(train, val, None, forward or default_forward))

    def end_epoch(
        self,
        *,
        train: Iterable[Any] | None = None,
        val: Iterable[Any] | None = None,
        metrics: Mapping[str, Mapping[str, float]] | None = None,
        forward: Callable[[nn.Module, Any], tuple[Tensor, Any]] | None = None,
    ) -> None:
        """End an epoch: methods that act between epochs do so, and `epoch` advances by one.

        Args:
            train: Loader of training batches, for methods that look at data.
            val: Loader of validation batches, likewise.
            metrics: ``{"loss": {modality: float}, "accuracy": {...}}``, for methods that need numbers only.
            forward: ``(model, batch) -> (logits, target)``; default ``model(*batch[:-1]), batch[-1]``, moved to the
                device of the model.
        """
        self._lifecycle.end_epoch(EpochData(train, val, metrics, forward or default_forward))

    def diagnose(self, loader: Iterable[Any], **options: Any) -> Diagnosis:
        """Return `modbalance.diagnose` of the model as it is now; training goes on as if it had not been called.

        Args:
            loader: Batches of held-out samples.
            options: Keywords of `modbalance.diagnose` from ``score`` on. Score and loss are those of the latest
                `criterion`, unless given; ``epoch`` is `opt.epoch`.

        Raises:
            ConfigError: There is no model, or an argument, a batch, a label or logits do not fit.
        """
        return diagnose_training(self._lifecycle.training, loader, **options)

    @property
    def epoch(self) -> int:
        """Current epoch, 0-based; settable. Windows count in it."""
        return self._lifecycle.training.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
            raise ConfigError(f"`opt.epoch` should be an integer >= 0. Found {epoch!r}.")
        self._lifecycle.set_epoch(epoch)

    # In an object of its own, which LightningOptimizer shares: it inherits this class, and reads attributes of ours.
    @property
    def _clip_grad_norm(self) -> float | None:
        return self._clip.norm

    @_clip_grad_norm.setter
    def _clip_grad_norm(self, norm: float | None) -> None:
        self._clip.norm = norm

    @property
    def should_stop(self) -> bool:
        """Whether a method would end the training here (early stopping); nothing stops by itself."""
        return self._lifecycle.training.should_stop

    def metrics(self) -> dict[str, float]:
        """Return the latest logged values, ``<method>/<quantity>/<modality>``; the only call that reads tensors."""
        return self._lifecycle.training.telemetry.read()

    def describe(self) -> str:
        """Return a readable account of modalities, parameters, methods, hooks, their order, and clips."""
        return self._lifecycle.describe(self._clip_grad_norm)

    def remove(self) -> None:
        """Take all hooks off the model. The wrapper goes on as a plain optimizer, with the user's own clip."""
        self._lifecycle.detach()
        self._clip.drop_preset()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the inner optimizer; its key ``"modality"``, if any, counts as at construction."""
        self._lifecycle.training.structure.check_group(param_group)
        super().add_param_group(param_group)

    def _about_to_scale(self) -> None:
        """Hear that a GradScaler is about to take a step or to skip it: the pending step is complete."""
        uneven = self._lifecycle.training.ranks.uneven
        if uneven is not None and uneven.is_active and self._lifecycle.observing:
            raise ConfigError(
                "A `GradScaler` should not be used in a `Join` context with a method that reduces statistics: ranks "
                "without batches cannot know which steps it skips. Found one: train in bfloat16 or without `Join`."
            )
        self._lifecycle.complete()

    # Uneven numbers of batches on ranks; the names and the attribute are those of torch's `Joinable`

    _join_config: Any = None

    def join_hook(self, **kwargs: Any) -> UnevenInputs:
        """Return the hook for ranks that have run out of batches, for `Join([model, opt])` of torch.

        Args:
            kwargs: Arguments of the context, which concern the model alone.

        Raises:
            ConfigError: The inner optimizer distributes its state over ranks.
        """
        return UnevenInputs(self, self._inner, self._lifecycle)

    @property
    def join_device(self) -> torch.device:
        """Device of the collectives of a `Join` context."""
        return self._lifecycle.run.device

    @property
    def join_process_group(self) -> Any:
        """Process group of a `Join` context: that of the model in DDP, else the default one."""
        return self._lifecycle.training.ranks.group

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state, flat as torch's, plus the key ``modbalance``.

        At any time it is the state of the last whole step; a warning says where gradients since then are lost.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        saved = Checkpoint(self._inner, self._lifecycle).save()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state; a plain inner state, or the key ``modbalance`` alone, restores just that part.

        Raises:
            CheckpointError: The state is of another method, model or version; nothing is changed.
        """
        saved = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, saved)
            saved = saved if changed is None else changed
        Checkpoint(self._inner, self._lifecycle).load(saved)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __repr__(self) -> str:
        methods = [method.name for method in self._lifecycle.methods] or ["none"]
        return f"BalancedOptimizer({'+'.join(methods)}, {self._inner!r})"

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return self._pass(name, found) if name in ("first_step", "second_step") else found

    def _pass(self, name: str, inner_pass: Callable[..., Any]) -> Callable[..., Any]:
        """Return one of the two passes of SAM, on modulated gradients; only the second one is committed."""

        @functools.wraps(inner_pass)
        def modulated(*args: Any, **kwargs: Any) -> Any:
            self._before_inner_step()
            result = inner_pass(*args, **kwargs)
            if name == "second_step":
                self._after_inner_step()
            else:
                self._lifecycle.drop_pending()
            return result

        return modulated

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            result = closure()
        self._before_inner_step()
        return result

    # A compiled step is that of the inner optimizer: the state of methods, which changes from step to step, would be
    # compiled again each time. Dynamo leaves these two to Python. Unlike torch.compiler.disable, the decorator that
    # torch has for its own optimizers does not load dynamo with this module.

    @_disable_dynamo
    def _before_inner_step(self) -> None:
        if (uneven := self._lifecycle.training.ranks.uneven) is not None:
            uneven.check_order()
        self._lifecycle.warn_before_step()
        if self._clip.alternates(self._lifecycle.run.model):
            self._lifecycle.warnings.notices.give(PRESET_CLIPS)
        self._lifecycle.modulate()
        if self._clip_grad_norm is not None:
            gradients.clip_([*gradients.optimized(self._inner)], self._clip_grad_norm)
        self._lifecycle.before_inner_step()

    @_disable_dynamo
    def _after_inner_step(self) -> None:
        self._lifecycle.after_inner_step()


def _one_optimizer(inner: Any) -> Optimizer:
    """Return the optimizer to wrap, several as one."""
    several = list(inner) if isinstance(inner, list | tuple) else [inner]
    for each in several:
        if isinstance(each, BalancedOptimizer):
            raise ConfigError(
                "Parameter `inner` should be the optimizer itself. Found BalancedOptimizer: pass a list of methods, "
                "`method=[...]`, to one BalancedOptimizer."
            )
        if not isinstance(each, Optimizer):
            raise ConfigError(
                f"Parameter `inner` should be a torch optimizer, or a list of them. Found {type(each).__name__}."
            )
    if not several:
        raise ConfigError("Parameter `inner` should be a torch optimizer, or a list of them. Found an empty list.")
    return several[0] if len(several) == 1 else JointOptimizer(several)


def _no_loss(*args: Any) -> Tensor:
    raise ConfigError("This method calls the loss function itself: use `opt.criterion(loss_fn)`, not `opt.observe`.")
