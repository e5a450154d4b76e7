"""The model as encoders and fusion: its modules by modality, and which parameter belongs to which modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance._model import compiled
from modbalance._model.forward import Inputs
from modbalance._model.modes import ModeDependence
from modbalance.errors import ConfigError, suggest
from modbalance.gradients import optimized
from modbalance.sharding import is_sharded

Part = str | nn.Module
Parts = Part | Sequence[Part]
Fusion = Parts | Callable[..., Tensor]


def unwrap(model: nn.Module | None) -> nn.Module | None:
    """Return the bare module behind DDP and compile wrappers."""
    if isinstance(model, nn.DataParallel):
        raise ConfigError(
            "Parameter `model` should be a module on one device or wrapped by DistributedDataParallel. Found "
            "nn.DataParallel, whose replicas no hook can follow: use torchrun with DistributedDataParallel."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(cast(nn.Module, model.module))
    if model is not None and hasattr(model, "_orig_mod"):
        return unwrap(cast(nn.Module, model._orig_mod))
    return model


def resolve(part: Part, model: nn.Module | None, what: str) -> nn.Module:
    """Return the submodule that a path names, or the module itself.

    Raises:
        ConfigError: There is no such submodule (the nearest names are given), or no model to look in.
    """
    if isinstance(part, nn.Module):
        return part
    if not isinstance(part, str):
        raise ConfigError(f"{what} should be a path or a module. Found {part!r} of type {type(part).__name__}.")
    if model is None:
        raise ConfigError(f"{what} names the submodule {part!r}, which needs `model=`. Found no model.")
    named = dict(model.named_modules(remove_duplicate=False))
    if part not in named or not part:
        raise ConfigError(f"{what} names no submodule of {type(model).__name__}: {part!r}. {suggest(part, named)}")
    return named[part]


def _as_list(parts: Any) -> list[Any]:
    return list(parts) if isinstance(parts, list | tuple) else [parts]


class Structure:
    """Encoders, fusion and parameter ownership of one model.

    Attributes:
        model: The user's model without wrappers; ``None`` in the model-free form.
        compiled: What `torch.compile` made of it, where that was given as the model.
        modalities: Names of the modalities, in fusion order.
        encoders: Modules of each modality's encoder; empty where parameter groups name the modalities.
        fusion: Modules that turn features into logits, applied in sequence; empty where unknown or a callable.
        fusion_callable: The same as a callable from features to logits.
        feature_sizes: Sizes of the parts of one concatenated tensor, in fusion order.
        inputs: Places of the modalities among the arguments of the model.
        modes: Whether features depend on the mode; ``None`` in the model-free form.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        modalities: Mapping[str, Parts] | None,
        fusion: Fusion | None,
        feature_sizes: Mapping[str, int] | Sequence[int] | None,
        inputs: Inputs,
    ) -> None:
        self.model = unwrap(model)
        self.compiled = compiled.compiled_form(model)
        self.inputs = inputs
        ours = {id(p) for p in optimized(optimizer)}
        self._trained = {name: p for name, p in self._parameters_now() if id(p) in ours}
        self._optimizer = optimizer
        self.encoders = {} if modalities is None else self._resolve_encoders(modalities)
        self.modalities = tuple(self.encoders or _grouped(optimizer))
        inputs.check(self.modalities)
        self.fusion, self.fusion_callable = self._resolve_fusion(fusion)
        self.feature_sizes = self._resolve_sizes(feature_sizes)
        self.modes = None if self.model is None else ModeDependence(self.model, self.fusion)

    def replaced_parameters(self, optimizer: Optimizer) -> list[str]:
        """Return the names of parameters that the optimizer updates and that are the model's no more.

        Raises:
            ConfigError: The optimizer updates none of the model's parameters.
        """
        now, updated = {id(p) for _, p in self._parameters_now()}, {id(p) for p in optimized(optimizer)}
        if self.model is not None and now.isdisjoint(updated):
            if any(is_sharded(p) for p in self._trained.values()):
                raise ConfigError(
                    "`fully_shard` should see the backward of what it shards. Found the weights still whole at "
                    "`step()`, as where a method takes the loss of other logits than the model returns: apply "
                    "`fully_shard` to each encoder first, then to the model."
                )
            raise ConfigError(
                f"The optimizer should update parameters of the model. Found none among the {len(now)} that "
                f"{type(self.model).__name__} has now, so that nothing would be trained. Sharding it "
                "(`fully_shard`), or loading with `assign=True`, makes new parameters: do so first, then build the "
                "torch optimizer from `model.parameters()`, and BalancedOptimizer around it."
            )
        return [name for name, p in self._trained.items() if id(p) in updated - now]

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise a ConfigError for a parameter group, added later, of a modality that is not known."""
        modality = group.get("modality")
        if modality is not None and not self.encoders and modality not in self.modalities:
            raise ConfigError(
                f"An added group should name one of the modalities {list(self.modalities)}. "
                f"Found {modality!r}: give all modalities when BalancedOptimizer is built."
            )

    def owned(self, modality: str) -> list[tuple[str, nn.Parameter]]:
        """Return (name, parameter) of a modality's encoder.

        Raises:
            ConfigError: A parameter belongs to the encoder of another modality too.
        """
        self.require_disjoint()
        return self.listed(modality)

    def listed(self, modality: str) -> list[tuple[str, nn.Parameter]]:
        """Return (name, parameter) of a modality's encoder, shared or not, as the model is now."""
        return self._owned_now().get(modality, [])

    def require_disjoint(self) -> None:
        """Raise a ConfigError if two encoders share a parameter."""
        for name, owners in _shared(self._owned_now()).items():
            raise ConfigError(
                f"Encoders should not share parameters, so that each belongs to one modality. Found {name!r} in those "
                f"of {' and '.join(map(repr, owners))}: name only the parts that are a modality's own in `modalities=`."
            )

    def sole_fusion_layer(self) -> nn.Module | None:
        """Return the layer that holds all of the fusion's parameters, if there is one."""
        leaves = [module for root in self.fusion for module in root.modules() if list(module.parameters(False))]
        return leaves[0] if len(leaves) == 1 else None

    def explain_missing_features(self, missing: Sequence[str] = (), *, ran: bool = False) -> str:
        """Return a message on features that no hook recorded, with the fix.

        Args:
            missing: The modalities, if it is not all of them.
            ran: Whether a forward of the model was seen.
        """
        if missing:
            return (
                f"This method needs the features of each modality. Found none of {', '.join(map(repr, missing))}: "
                "the modules in `modalities=` should return one tensor and run in each forward. Name an inner module "
                "that does, or the submodule that receives all features in `fusion=`."
            )
        if self.model is None:
            return (
                "This method needs the features of each modality. Found none: without `model=` hand them to the "
                "criterion, `criterion(logits, target, features={...}, unimodal_logits={...})`."
            )
        if self.fusion_callable is None and not self.fusion and not self.encoders:
            return "This method needs the features of each modality. Found neither `fusion=` nor `modalities=`."
        if ran and compiled.is_compiled(self.model):
            return (
                "This method needs the features of each modality, which hooks record. Found compiled code without "
                f"them: torch runs what it compiled before they were there, for this {type(self.model).__name__} or "
                f"another one. Leave `torch._dynamo.config.skip_nnmodule_hook_guards` at False, and {compiled.FIX}."
            )
        return (
            "This method needs the features of each modality, but no forward of the model was seen since the last "
            "step. Call the model that was passed as `model=` before the criterion, in training mode and with "
            "gradients (reentrant activation checkpointing runs without them: pass `use_reentrant=False`). If it is "
            f"compiled, its code may be older than the hooks: {compiled.FIX}."
        )

    def _parameters_now(self) -> list[tuple[str, nn.Parameter]]:
        return [] if self.model is None else list(self.model.named_parameters())

    def _resolve_encoders(self, modalities: Mapping[str, Parts]) -> dict[str, list[nn.Module]]:
        if not isinstance(modalities, Mapping) or not modalities:
            raise ConfigError(
                "Parameter `modalities` should map each modality to its encoder, such as {'audio': 'audio_net'}. "
                f"Found `modalities = {modalities!r}`."
            )
        return {
            name: [resolve(part, self.model, f"modalities[{name!r}]") for part in _as_list(parts)]
            for name, parts in modalities.items()
        }

    def _resolve_fusion(self, fusion: Fusion | None) -> tuple[list[nn.Module], Callable[..., Tensor] | None]:
        if fusion is None:
            return [], None
        if callable(fusion) and not isinstance(fusion, nn.Module):
            return [], fusion
        return [resolve(part, self.model, "Parameter `fusion`") for part in _as_list(fusion)], None

    def _resolve_sizes(self, sizes: Mapping[str, int] | Sequence[int] | None) -> tuple[int, ...] | None:
        if sizes is None:
            return None
        if isinstance(sizes, Mapping) and set(sizes) == set(self.modalities):
            return tuple(sizes[name] for name in self.modalities)
        if not isinstance(sizes, Mapping) and len(sizes) == len(self.modalities):
            return tuple(sizes)
        raise ConfigError(
            f"Parameter `feature_sizes` should give one size for each of {list(self.modalities)}. Found {sizes!r}."
        )

    def _owned_now(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        # Not kept: sharding after this object was built, and loading with `assign=True`, put others in their place.
        by_module = {name: _parameters(parts) for name, parts in self.encoders.items()}
        return self._named(by_module or _grouped(self._optimizer))

    def _named(self, owned: Mapping[str, list[nn.Parameter]]) -> dict[str, list[tuple[str, nn.Parameter]]]:
        names = {id(p): name for name, p in self._parameters_now()}
        return {
            modality: [(names.get(id(p), f"{modality}.{index}"), p) for index, p in enumerate(parameters)]
            for modality, parameters in owned.items()
        }


def _parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return list({id(p): p for module in modules for p in module.parameters()}.values())


def _grouped(optimizer: Optimizer) -> dict[str, list[nn.Parameter]]:
    owned: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        if "modality" in group:
            owned.setdefault(group["modality"], []).extend(group["params"])
    return owned


def _shared(owned: Mapping[str, list[tuple[str, nn.Parameter]]]) -> dict[str, list[str]]:
    owners: dict[int, tuple[str, list[str]]] = {}
    for modality, named in owned.items():
        for name, parameter in named:
            owners.setdefault(id(parameter), (name, []))[1].append(modality)
    return {name: modalities for name, modalities in owners.values() if len(modalities) > 1}
