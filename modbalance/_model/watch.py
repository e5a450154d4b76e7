"""Hooks on the user's model, which record the inputs and features of each forward and let methods replace them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from modbalance._model.forward import Args, Forward, Kwargs, replace_features, split_features
from modbalance._model.structure import Structure

Edit = Callable[[Forward], Mapping[str, Any] | None]


class ModuleHook:
    """A hook on a module. Copies of the module (deepcopy, pickle) get an inert one, since they are not trained."""

    is_neutral = True
    """Whether the features that it records are those that the modules compute."""

    def __init__(self, call: Callable[..., Any] | None = None, owner: Watch | None = None) -> None:
        self.call = call
        self.owner = owner

    def __call__(self, *args: Any) -> Any:
        """Call the hook; in a copy of the module, do nothing."""
        return self.call(*args) if self.call is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return (ModuleHook, ())

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleHook:
        return ModuleHook()


class Watch:
    """Records the forwards of one model by hooks on it.

    Attributes:
        enabled: Whether forwards in training are recorded; off outside of a method's window.
        forward: The last recorded forward since the last step.
        before: The one before it, if no criterion call came since.
        sees_evaluation: Whether forwards in evaluation are recorded too, for methods that act there.
        evaluated: The last recorded forward in evaluation.
        saw_evaluation: Whether the model ran in eval mode since this was last cleared.
        is_paused: Whether parts of the model run again for a method, which is not recorded.
        before_forward: Called before a forward in training is recorded, outside of code that is compiled as a whole.
        edit_inputs: Replaces inputs, where a method implements `modbalance_inputs`.
        edit_features: Replaces features, where a method implements `modbalance_features`.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.enabled = True
        self.forward: Forward | None = None
        self.before: Forward | None = None
        self.sees_evaluation = False
        self.evaluated: Forward | None = None
        self.saw_evaluation = False
        self.before_forward: Callable[[], None] | None = None
        self.edit_inputs: Edit | None = None
        self.edit_features: Edit | None = None
        self.is_paused = False
        self._handles: list[RemovableHandle] = []
        self._watched: Forward | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing of the passes in the body, which run parts of the model again."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    @contextmanager
    def separately(self) -> Iterator[Forward]:
        """Record the forward in the body separately, in any mode; no method replaces anything meanwhile."""
        before, self._watched = self._watched, Forward()
        try:
            yield self._watched
        finally:
            self._watched = before

    def attach(self) -> None:
        """Put the hooks on the model."""
        structure = self.structure
        if structure.model is not None and self.before_forward is not None:
            hook = ModuleHook(self._before_model, self)
            outermost = structure.model if structure.compiled is None else structure.compiled
            self._handles.append(outermost.register_forward_pre_hook(hook))
        if structure.model is not None:
            hook = ModuleHook(self._on_model, self)
            self._handles.append(structure.model.register_forward_pre_hook(hook, with_kwargs=True))
        if structure.fusion:
            hook = ModuleHook(self._on_fusion, self)
            self._handles.append(structure.fusion[0].register_forward_pre_hook(hook, with_kwargs=True))
            return
        for name, modules in structure.encoders.items():
            self._handles.append(modules[-1].register_forward_hook(ModuleHook(_OnEncoder(self, name), self)))

    def take_over(self) -> bool:
        """Remove hooks by which an earlier optimizer replaces inputs or features; return whether there were any."""
        structure = self.structure
        watched = [structure.model, *structure.fusion[:1], *(modules[-1] for modules in structure.encoders.values())]
        tables = [
            t for module in watched if module is not None for t in (module._forward_pre_hooks, module._forward_hooks)
        ]
        hooks = [hook for table in tables for hook in table.values() if isinstance(hook, ModuleHook)]
        others = [hook.owner for hook in hooks if hook.owner is not None and hook.owner is not self]
        acting = [watch for watch in others if watch.edit_inputs or watch.edit_features or watch.before_forward]
        for watch in acting:
            watch.remove()
        return bool(acting)

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Forget the forwards of this step, and those in evaluation."""
        self.forward = self.before = self.evaluated = None

    def __getstate__(self) -> dict[str, Any]:
        blank: dict[str, Any] = {
            "forward": None,
            "before": None,
            "evaluated": None,
            "before_forward": None,
            "edit_inputs": None,
            "edit_features": None,
            "_handles": [],
        }
        return self.__dict__ | blank

    @property
    def _is_recording(self) -> bool:
        if self._watched is not None:
            return True
        return self.enabled and not self.is_paused and (self._is_training or self.sees_evaluation)

    @property
    def _is_training(self) -> bool:
        model = self.structure.model
        return (model is None or model.training) and torch.is_grad_enabled()

    def _before_model(self, module: nn.Module, args: Args) -> None:
        is_separate = self._watched is not None or self.is_paused or _is_recomputing()
        if self.before_forward is not None and self.enabled and self._is_training and not is_separate:
            self.before_forward()

    def _on_model(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        if self._watched is not None:
            return None
        if not module.training and not self.is_paused:
            self.saw_evaluation = True
        if not self._is_recording or _is_recomputing():
            return None
        if not self._is_training:
            self.evaluated = Forward((args, kwargs))
            return None
        self.before, self.forward, self.evaluated = self.forward, Forward((args, kwargs)), None
        forward = self.forward
        if self.edit_inputs is None:
            return None
        new = self.edit_inputs(forward)
        if new is None:
            return None
        args, kwargs = self.structure.inputs.write(args, kwargs, self.structure.modalities, new)
        forward.replace_inputs(args, kwargs)
        return args, kwargs

    def _on_fusion(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        if not self._is_recording:
            return None
        structure = self.structure
        features = split_features(args, kwargs, structure.modalities, structure.feature_sizes)
        forward = self._note(features)
        forward.record_fusion_call(args, kwargs)
        if not self._is_training:
            return None
        new = self._edited(forward)
        return None if new is None else replace_features(args, kwargs, new, structure.modalities)

    def _note(self, features: dict[str, Tensor]) -> Forward:
        # A recomputation for activation checkpointing must compute the same values, but is not a new forward.
        if _is_recomputing() and self._watched is None:
            recomputed = Forward()
            recomputed.add_features(features, self.structure.modalities)
            return recomputed
        forward = self._watched
        if forward is None and self._is_training:
            self.evaluated = None
            forward = self.forward = _continued(self.forward, features) or Forward()
        elif forward is None:
            forward = self.evaluated = _continued(self.evaluated, features) or Forward()
        forward.add_features(features, self.structure.modalities)
        return forward

    def claim(self, logits: Tensor, logits_of: Callable[[Any], Tensor]) -> tuple[Forward, bool]:
        """Return the forward that a criterion call on ``logits`` belongs to, and whether one before it was left over.

        Where no hook saw the forward, a placeholder stands for it. One without features around one with features is the
        same pass: Lightning calls the forward of its module inside of a call of the module.
        """
        before, self.before = self.before, None
        forward = self.forward
        if forward is None or (forward.is_unseen and forward.logits is not logits):
            forward = self.forward = Forward()
        forward.claim(logits, logits_of)
        is_around = before is not None and forward.features and not before.features
        return forward, before is not None and not before.is_claimed and not is_around

    def _edited(self, forward: Forward) -> dict[str, Tensor] | None:
        new = self.edit_features(forward) if self.edit_features is not None and self._watched is None else None
        return None if new is None else {**forward.features, **new}


class _OnEncoder:
    """Records the output of an encoder as the feature of its modality, where no fusion module is given."""

    def __init__(self, watch: Watch, modality: str) -> None:
        self.watch = watch
        self.modality = modality

    def __call__(self, module: nn.Module, args: Args, output: Any) -> Any:
        if not self.watch._is_recording or not isinstance(output, Tensor):
            return None
        forward = self.watch._note({self.modality: output})
        new = self.watch._edited(forward) if self.watch._is_training else None
        return None if new is None else new[self.modality]


def _continued(forward: Forward | None, features: Mapping[str, Tensor]) -> Forward | None:
    """Return the forward that features belong to: without inputs, one that has features of these names is over."""
    is_over = forward is not None and forward.inputs is None and all(name in forward.features for name in features)
    return None if is_over else forward


def _is_recomputing() -> bool:
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)
