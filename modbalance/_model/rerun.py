"""Running parts of the model again: the fusion on other features, or all of it on other inputs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modbalance._model.forward import Args, Forward, Kwargs, replace_features
from modbalance._model.graphs import refuse_in_capture
from modbalance._model.modes import ModeDependence, modules_of, switched
from modbalance._model.reentrant import is_reentrant, next_number
from modbalance._model.structure import Structure
from modbalance._model.watch import Watch
from modbalance.errors import ConfigError, ObservationError
from modbalance.sharding import gathered

_RECOMPUTED = (
    "A pass in eval mode should not be recomputed in the backward, where the model is in training mode again. Found "
    "reentrant activation checkpointing in the model: switch it off, or let no gradient through such passes (option "
    "`masked_pass_grad=False`, where the method has it)."
)


class Rerun:
    """Runs the fusion or the whole model again, and leaves training flags, buffers and RNG as they were."""

    def __init__(self, structure: Structure, watch: Watch) -> None:
        self.structure = structure
        self.watch = watch
        self._is_known = False
        self._fusion_modes = ModeDependence(nn.ModuleList(structure.fusion), ())

    @property
    def fusion_modules(self) -> list[nn.Module]:
        """Modules that may run when features become logits; all of the model where a callable hides them."""
        model = self.structure.model
        return self.structure.fusion or ([model] if model is not None else [])

    def fuse(self, features: Mapping[str, Tensor], forward: Forward | None, *, training: bool | None = None) -> Tensor:
        """Return the fusion's output for other features, run as in ``forward``: same further arguments, same autocast.

        Args:
            features: By modality, (B, ..., D_i).
            forward: The forward to follow; ``None``: no further arguments, no autocast.
            training: Mode of this pass; ``None``: as the modules are.
        """
        structure = self.structure
        if structure.fusion_callable is None and not structure.fusion:
            raise ConfigError(
                "Running the fusion again needs `fusion=`: the submodule where unimodal features become logits "
                "(a path, a module, a list applied in sequence, or a callable). Found none."
            )
        with (
            self._unchanged(training),
            self.watch.paused(),
            nullcontext() if forward is None else forward.autocast(),
            self.synchronized_as_in(forward),
            gathered(structure.fusion, features.values()),
        ):
            if structure.fusion_callable is not None:
                return _as_logits(structure.fusion_callable(*(features[name] for name in structure.modalities)))
            call = (forward.fusion_args, forward.fusion_kwargs) if forward is not None else ((), {})
            args, kwargs = replace_features(*call, features, structure.modalities)
            output = structure.fusion[0](*args, **kwargs)
            for module in structure.fusion[1:]:
                output = module(output)
            return _as_logits(output)

    def synchronized_as_in(self, forward: Forward | None) -> AbstractContextManager[None]:
        """Return a context in which batch norms use the samples of this rank alone, if they did so in a forward."""
        model = self.structure.model
        return nullcontext() if forward is None or model is None or not forward.is_local else unsynchronized(model)

    def _unchanged(self, training: bool | None) -> AbstractContextManager[object]:
        """Return a context in which a pass of the fusion leaves no trace; none is needed if it cannot leave any.

        A fork of the random state costs a copy of it, more than a small fusion, and is refused in a CUDA graph.
        """
        # Known of the modes that modules are in, so that a pass in training mode needs the switch.
        if training is not True and self.structure.fusion and self._fusion_modes.is_excluded():
            return nullcontext()
        return preserved(self.fusion_modules, training)

    def model(self, forward: Forward, args: Args, kwargs: Kwargs, *, training: bool) -> Tensor:
        """Return the logits of the model for other inputs, run as in ``forward``.

        Raises:
            ObservationError: The first pass in eval mode with graph would be computed again, in training mode then.
        """
        model = self.structure.model
        assert model is not None
        is_first = not training and torch.is_grad_enabled() and not self._is_known
        since = next_number(next(model.parameters())) if is_first else 0
        with preserved([model], training), forward.autocast(), self.synchronized_as_in(forward):
            output = (model if self.structure.compiled is None else self.structure.compiled)(*args, **kwargs)
        logits = _as_logits(output if forward.logits_of is None else forward.logits_of(output))
        if is_first:
            if is_reentrant(logits, since):
                raise ObservationError(_RECOMPUTED)
            self._is_known = True
        return logits


@contextmanager
def preserved(modules: Sequence[nn.Module], training: bool | None, *, buffers: bool = True) -> Iterator[None]:
    """Restore training flags, buffers and RNG after the body; run it in the given mode, ``None``: as modules are.

    Without ``buffers`` these keep what the body makes of them.
    """
    refuse_in_capture("modules that run again and may draw numbers or change buffers, whose state is put back")
    with switched(modules, training) as running:
        # Copies stand in for the buffers meanwhile: to write the old values back would break the backward of a batch
        # norm that has run already. In eval mode no buffer changes.
        changing = [module for module in running if buffers and module.training and module._buffers]
        owners = [(module._buffers, dict(module._buffers)) for module in changing]
        for current, kept in owners:
            current.update({name: buffer.clone() for name, buffer in kept.items() if buffer is not None})
        parameters = (p for module in running for p in module._parameters.values() if p is not None)
        devices = {p.device.index for p in parameters if p.is_cuda}
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            for current, kept in owners:
                current.update(kept)


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let the parameters of modules act as constants in the body."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def unsynchronized(root: nn.Module) -> Iterator[None]:
    """Let batch norms that are synchronized over ranks normalize by the samples of this rank in the body.

    The backward of `nn.SyncBatchNorm` cannot be differentiated.
    """
    layers = [module for module in modules_of([root]) if isinstance(module, nn.SyncBatchNorm)]
    own = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.__dict__["forward"] = functools.partial(_BatchNorm.forward, layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.__dict__["forward"]
            else:
                layer.__dict__["forward"] = forward


def _as_logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    raise ConfigError(
        f"The fusion should return the logits as one tensor. Found {type(output).__name__}: name the modules up to the "
        "logits in `fusion=[...]`, or pass a callable from features to logits."
    )
