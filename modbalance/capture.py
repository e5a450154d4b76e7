"""Hooks on the user's model: they note inputs and features of a forward, and let methods replace them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from modbalance.layout import Args, Kwargs, replace_features, split_features
from modbalance.topology import Topology

Edit = Callable[["Forward"], Mapping[str, Any] | None]


class Forward:
    """What the hooks saw of one forward of the model. A plain class, which dynamo can build inside a compiled forward.

    Attributes:
        inputs: Positional and keyword arguments of the model; ``None`` where its parts were called one by one.
        features: By modality, as they enter the fusion.
        fusion_args: Positional arguments of the fusion, ``fusion_kwargs`` its keyword arguments.
        autocast_state: Device type, whether autocast was on, and its dtype, as the features entered the fusion.
        logits: Fused logits of the criterion call, which tell two forwards apart where no hook sees them.
        logits_of: Picks the logits out of the model's output.
        was_asked_for: Whether a criterion call came for it.
        is_observed: Whether a criterion call has gathered statistics of it already.
        replaced: The logits that a method replaced, and what by.
    """

    def __init__(self, inputs: tuple[Args, Kwargs] | None = None) -> None:
        self.inputs = inputs
        self.features: dict[str, Tensor] = {}
        self.fusion_args: Args = ()
        self.fusion_kwargs: Kwargs = {}
        self.autocast_state: tuple[str, bool, torch.dtype] | None = None
        self.logits: Tensor | None = None
        self.logits_of: Callable[[Any], Tensor] | None = None
        self.was_asked_for = False
        self.is_observed = False
        self.replaced: tuple[Tensor, Tensor] | None = None

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type in which logits of ``dtype`` were computed, which autocast makes a shorter one."""
        if self.autocast_state is None or not self.autocast_state[1]:
            return dtype
        return self.autocast_state[2]

    def current(self, logits: Tensor) -> Tensor:
        """Return what a method replaced ``logits`` by in an earlier criterion call, or else themselves."""
        return self.replaced[1] if self.replaced is not None and self.replaced[0] is logits else logits

    @property
    def is_unseen(self) -> bool:
        """Whether no hook saw any of it, so that a criterion call had to make it up."""
        return self.inputs is None and not self.features

    def autocast(self) -> torch.autocast:
        """Return the autocast context under which the features entered the fusion."""
        device, enabled, dtype = self.autocast_state or ("cpu", False, torch.bfloat16)
        return torch.autocast(device, dtype=dtype, enabled=enabled)


class Tap:
    """A hook on a module. Copies of the module (deepcopy, pickle) carry an inert one: they are not being trained."""

    def __init__(self, call: Callable[..., Any] | None = None, owner: Capture | None = None) -> None:
        self.call = call
        self.owner = owner

    def __call__(self, *args: Any) -> Any:
        """Do what the hook does, or nothing in a copy."""
        return self.call(*args) if self.call is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Tap, ())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        return Tap()


class Capture:
    """Watches the forwards of one model.

    Attributes:
        enabled: Whether forwards in training are recorded; off outside of a method's window.
        forward: The last recorded forward since the last step.
        before: The one before it, if no criterion call came since.
        saw_evaluation: Whether the model ran in eval mode since this was last cleared.
        edit_inputs: Replaces inputs, where a method implements `modbalance_inputs`.
        edit_features: Replaces features, where a method implements `modbalance_features`.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.enabled = True
        self.forward: Forward | None = None
        self.before: Forward | None = None
        self.saw_evaluation = False
        self.edit_inputs: Edit | None = None
        self.edit_features: Edit | None = None
        self._handles: list[RemovableHandle] = []
        self._watched: Forward | None = None

    @contextmanager
    def watching(self) -> Iterator[Forward]:
        """Note what runs inside in a record of its own, in any mode; no method replaces anything meanwhile."""
        before, self._watched = self._watched, Forward()
        try:
            yield self._watched
        finally:
            self._watched = before

    def attach(self) -> None:
        """Put the hooks on the model."""
        topology = self.topology
        if topology.model is not None:
            tap = Tap(self._on_model, self)
            self._handles.append(topology.model.register_forward_pre_hook(tap, with_kwargs=True))
        if topology.fusion:
            tap = Tap(self._on_fusion, self)
            self._handles.append(topology.fusion[0].register_forward_pre_hook(tap, with_kwargs=True))
            return
        for name, modules in topology.encoders.items():
            self._handles.append(modules[-1].register_forward_hook(Tap(_OnEncoder(self, name), self)))

    def take_over(self) -> bool:
        """Take off hooks by which an earlier optimizer replaces what runs through the same modules; say if any did."""
        topology = self.topology
        watched = [topology.model, *topology.fusion[:1], *(modules[-1] for modules in topology.encoders.values())]
        tables = [
            t for module in watched if module is not None for t in (module._forward_pre_hooks, module._forward_hooks)
        ]
        taps = [hook for table in tables for hook in table.values() if isinstance(hook, Tap)]
        others = [tap.owner for tap in taps if tap.owner is not None and tap.owner is not self]
        acting = [capture for capture in others if capture.edit_inputs or capture.edit_features]
        for capture in acting:
            capture.remove()
        return bool(acting)

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Forget the forwards of this step."""
        self.forward = self.before = None

    def __getstate__(self) -> dict[str, Any]:
        blank: dict[str, Any] = {
            "forward": None,
            "before": None,
            "edit_inputs": None,
            "edit_features": None,
            "_handles": [],
        }
        return self.__dict__ | blank

    @property
    def _is_recording(self) -> bool:
        if self._watched is not None:
            return True
        model = self.topology.model
        is_training = model is None or model.training
        return self.enabled and is_training and torch.is_grad_enabled() and not self.topology.is_paused

    def _on_model(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        if self._watched is not None:
            return None
        if not module.training and not self.topology.is_paused:
            self.saw_evaluation = True
        if not self._is_recording or _is_recomputing():
            return None
        self.before, self.forward = self.forward, Forward((args, kwargs))
        forward = self.forward
        if self.edit_inputs is None:
            return None
        new = self.edit_inputs(forward)
        if new is None:
            return None
        forward.inputs = self.topology.inputs.write(args, kwargs, self.topology.modalities, new)
        return forward.inputs

    def _on_fusion(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        if not self._is_recording:
            return None
        topology = self.topology
        features = split_features(args, kwargs, topology.modalities, topology.feature_sizes)
        forward = self._note(features)
        forward.fusion_args, forward.fusion_kwargs = args, kwargs
        new = self._edited(forward)
        return None if new is None else replace_features(args, kwargs, new, topology.modalities)

    def _note(self, features: dict[str, Tensor]) -> Forward:
        # A recomputation for activation checkpointing must compute the same values, but is not a new forward.
        if _is_recomputing():
            recomputed = Forward()
            recomputed.features = features
            return recomputed
        forward = self._watched or self.forward
        # Without a call of the model itself, each call of the fusion is a forward of its own.
        is_next = forward is not None and forward.inputs is None and not features.keys() - forward.features.keys()
        if forward is None or (is_next and self._watched is None):
            self.forward = forward = Forward()
        found = forward.features | features
        forward.features = {name: found[name] for name in self.topology.modalities if name in found}
        device = next(iter(features.values())).device.type
        forward.autocast_state = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        return forward

    def _edited(self, forward: Forward) -> dict[str, Tensor] | None:
        new = self.edit_features(forward) if self.edit_features is not None and self._watched is None else None
        return None if new is None else {**forward.features, **new}


class _OnEncoder:
    """Takes an encoder's output for the feature of its modality, where no fusion module receives it."""

    def __init__(self, capture: Capture, modality: str) -> None:
        self.capture = capture
        self.modality = modality

    def __call__(self, module: nn.Module, args: Args, output: Any) -> Any:
        if not self.capture._is_recording or not isinstance(output, Tensor):
            return None
        forward = self.capture._note({self.modality: output})
        new = self.capture._edited(forward)
        return None if new is None else new[self.modality]


def _is_recomputing() -> bool:
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)
