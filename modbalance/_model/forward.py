"""One forward of the model: its inputs and features by modality, and where they stand among the arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from modbalance.errors import ConfigError

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Place = int | str


class Forward:
    """Record of one forward of the model: inputs, features and the criterion call that belongs to it.

    A plain class, which dynamo can build inside a compiled forward; only its own methods write to it.

    Attributes:
        inputs: Positional and keyword arguments of the model; ``None`` where its parts were called one by one.
        features: By modality, as they enter the fusion.
        fusion_args: Positional arguments of the fusion, ``fusion_kwargs`` its keyword arguments.
        autocast_state: Device type, whether autocast was on, and its dtype, as the features entered the fusion.
        logits: Fused logits of the criterion call, which identify a forward where no hook saw it.
        logits_of: Picks the logits out of the model's output.
        is_claimed: Whether a criterion call came for it.
        is_observed: Whether a criterion call has gathered statistics of it already.
        replaced: The logits that a method replaced, and their replacement.
        is_local: Whether batch norms that are synchronized over ranks use the samples of this rank alone.
    """

    def __init__(self, inputs: tuple[Args, Kwargs] | None = None) -> None:
        self.inputs = inputs
        self.features: dict[str, Tensor] = {}
        self.fusion_args: Args = ()
        self.fusion_kwargs: Kwargs = {}
        self.autocast_state: tuple[str, bool, torch.dtype] | None = None
        self.logits: Tensor | None = None
        self.logits_of: Callable[[Any], Tensor] | None = None
        self.is_claimed = False
        self.is_observed = False
        self.replaced: tuple[Tensor, Tensor] | None = None
        self.is_local = False

    # Written while the model runs

    def replace_inputs(self, args: Args, kwargs: Kwargs) -> None:
        """Record the arguments that the model really gets."""
        self.inputs = (args, kwargs)

    def add_features(self, features: Mapping[str, Tensor], order: Sequence[str]) -> None:
        """Record features, kept in the order of the modalities, and the autocast state that they are computed in."""
        found = {**self.features, **features}
        self.features = {name: found[name] for name in order if name in found}
        device = next(iter(features.values())).device.type
        self.autocast_state = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def record_fusion_call(self, args: Args, kwargs: Kwargs) -> None:
        """Record the arguments with which the fusion is called."""
        self.fusion_args, self.fusion_kwargs = args, kwargs

    # Written in the criterion

    def claim(self, logits: Tensor, logits_of: Callable[[Any], Tensor]) -> None:
        """Record the criterion call on this forward's logits."""
        self.is_claimed, self.logits, self.logits_of = True, logits, logits_of

    def replace_logits(self, logits: Tensor, new: Tensor) -> None:
        """Record that a method replaced ``logits``, so that a further criterion call on them gets the same."""
        self.replaced = logits, new

    def mark_observed(self) -> None:
        """Record that the statistics of this forward are gathered."""
        self.is_observed = True

    # Read

    def current(self, logits: Tensor) -> Tensor:
        """Return the replacement of ``logits`` from an earlier criterion call, or else themselves."""
        return self.replaced[1] if self.replaced is not None and self.replaced[0] is logits else logits

    @property
    def is_unseen(self) -> bool:
        """Whether no hook recorded any of it: a placeholder made by a criterion call."""
        return self.inputs is None and not self.features

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type in which logits of ``dtype`` were computed, which autocast makes a shorter one."""
        if self.autocast_state is None or not self.autocast_state[1]:
            return dtype
        return self.autocast_state[2]

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context under which the features entered the fusion; none where it is off now as then."""
        device, enabled, dtype = self.autocast_state or ("cpu", False, torch.bfloat16)
        if not enabled and not torch.is_autocast_enabled(device):
            return nullcontext()
        return torch.autocast(device, dtype=dtype, enabled=enabled)


def split_features(
    args: Args, kwargs: Kwargs, modalities: Sequence[str], sizes: Sequence[int] | None
) -> dict[str, Tensor]:
    """Return the features by modality from the arguments with which the fusion is called.

    Admitted are one tensor argument per modality (keywords named as the modalities go by name, others by order), one
    list, tuple or dict of them, or one tensor concatenated along its last dimension, if ``sizes`` are given.

    Raises:
        ConfigError: The arguments cannot be split without guessing.
    """
    tensors, keys = _feature_arguments(args, kwargs)
    if len(tensors) == 1 and len(modalities) > 1:
        return _split_concatenated(tensors[0], modalities, sizes)
    if len(tensors) != len(modalities):
        raise ConfigError(
            f"The fusion should receive one tensor for each of {list(modalities)}, or one concatenated tensor. "
            f"Found {len(tensors)} tensors among {len(args)} positional and {len(kwargs)} keyword arguments: "
            "name the submodule that receives the features in `fusion=`, or pass a callable from features to logits."
        )
    if set(keys) == set(modalities):
        return {name: tensors[keys.index(name)] for name in modalities}
    if any(key in modalities and key != name for key, name in zip(keys, modalities, strict=True)):
        raise ConfigError(
            f"The fusion should receive its features by order, or all by the names {list(modalities)}. Found {keys}: "
            "name the modalities as the arguments of the fusion, in `modalities=`."
        )
    return dict(zip(modalities, tensors, strict=True))


def replace_features(
    args: Args, kwargs: Kwargs, features: Mapping[str, Tensor], modalities: Sequence[str]
) -> tuple[Args, Kwargs]:
    """Return the arguments of the fusion's call with other features in the places of the original ones."""
    tensors, keys = _feature_arguments(args, kwargs)
    ordered = [features[name] for name in modalities]
    if not tensors:
        return tuple(ordered), kwargs
    if len(tensors) == 1 and len(modalities) > 1:
        ordered = [torch.cat(ordered, dim=-1)]
    elif set(keys) == set(modalities):
        ordered = [features[str(key)] for key in keys]
    if _is_container(args, kwargs):
        container = args[0]
        new = dict(zip(container, ordered, strict=True)) if isinstance(container, dict) else type(container)(ordered)
        return (new,), kwargs
    fresh = iter(ordered)
    return (
        tuple(next(fresh) if isinstance(value, Tensor) else value for value in args),
        {key: next(fresh) if isinstance(value, Tensor) else value for key, value in kwargs.items()},
    )


def _feature_arguments(args: Args, kwargs: Kwargs) -> tuple[list[Tensor], list[Place]]:
    items: list[tuple[Place, Any]] = [*enumerate(args), *kwargs.items()]
    if _is_container(args, kwargs):
        items = list(args[0].items() if isinstance(args[0], dict) else enumerate(args[0]))
    found = [(key, value) for key, value in items if isinstance(value, Tensor)]
    return [value for _, value in found], [key for key, _ in found]


def _is_container(args: Args, kwargs: Kwargs) -> bool:
    return len(args) == 1 and not kwargs and isinstance(args[0], list | tuple | dict)


def _split_concatenated(tensor: Tensor, modalities: Sequence[str], sizes: Sequence[int] | None) -> dict[str, Tensor]:
    if sizes is None:
        raise ConfigError(
            f"The fusion receives one tensor of shape {tuple(tensor.shape)} for {list(modalities)}, and the sizes of "
            "its parts are never guessed. Pass `feature_sizes=`, such as "
            f"{{{', '.join(f'{name!r}: ...' for name in modalities)}}}."
        )
    if tensor.shape[-1] != sum(sizes):
        raise ConfigError(
            f"`feature_sizes` should add up to the last dimension of the fusion's input, {tensor.shape[-1]}. "
            f"Found {dict(zip(modalities, sizes, strict=True))}, which add up to {sum(sizes)}."
        )
    return dict(zip(modalities, torch.split(tensor, list(sizes), dim=-1), strict=True))


class Inputs:
    """Which arguments of the model's forward belong to a modality, and what stands for a missing one.

    Args:
        places: By modality a position, a name, or a tuple of them; ``None``: names of modalities, else positions in
            fusion order. A name is that of a keyword argument, or a key of a mapping that is the only argument.
        mask_value: Number that a removed input is filled with, or a mapping by modality.
    """

    def __init__(
        self, places: Mapping[str, Place | Sequence[Place]] | None, mask_value: float | Mapping[str, float] = 0.0
    ) -> None:
        self._places = places
        self._mask_value = mask_value

    def check(self, modalities: Sequence[str]) -> None:
        """Raise a ConfigError unless what was given is for these modalities."""
        if self._places is not None:
            for name in modalities:
                self.places(name, modalities, ())
        for parameter, value in (("inputs", self._places), ("mask_value", self._mask_value)):
            unknown = set(value) - set(modalities) if isinstance(value, Mapping) else set()
            if unknown:
                raise ConfigError(
                    f"Parameter `{parameter}` should name modalities {list(modalities)}. Found {sorted(unknown)}."
                )

    def places(self, modality: str, modalities: Sequence[str], names: Collection[str]) -> tuple[Place, ...]:
        """Return the positions and names of a modality's arguments, where ``names`` are those of the call."""
        if self._places is None:
            return (modality,) if modality in names else (list(modalities).index(modality),)
        if modality not in self._places:
            raise ConfigError(
                f"Parameter `inputs` should give the arguments of {modality!r}. Found {dict(self._places)}."
            )
        place = self._places[modality]
        return (place,) if isinstance(place, int | str) else tuple(place)

    def read(self, args: Args, kwargs: Kwargs, modalities: Sequence[str]) -> dict[str, Any]:
        """Return the inputs by modality: one value, or a tuple where a modality has several arguments."""
        found, names = {}, _names(args, kwargs)
        for modality in modalities:
            values = tuple(_get(args, kwargs, place) for place in self.places(modality, modalities, names))
            found[modality] = values[0] if len(values) == 1 else values
        return found

    def write(
        self, args: Args, kwargs: Kwargs, modalities: Sequence[str], new: Mapping[str, Any]
    ) -> tuple[Args, Kwargs]:
        """Return the arguments with the inputs in ``new`` put in their places."""
        positional, named, names = list(args), dict(kwargs), _names(args, kwargs)
        for modality, value in new.items():
            places = self.places(modality, modalities, names)
            for place, item in zip(places, value if len(places) > 1 else (value,), strict=True):
                if isinstance(place, int):
                    positional[place] = item
                elif place in kwargs or not _is_mapping(args):
                    named[place] = item
                else:
                    positional[0] = {**positional[0], place: item}
        return tuple(positional), named

    def masked(
        self, args: Args, kwargs: Kwargs, modalities: Sequence[str], present: Collection[str]
    ) -> tuple[Args, Kwargs]:
        """Return the arguments with the inputs of all modalities but ``present`` filled with the mask value."""
        removed = {name: v for name, v in self.read(args, kwargs, modalities).items() if name not in present}
        new = {name: map_tensors(value, self._mask(name)) for name, value in removed.items()}
        return self.write(args, kwargs, modalities, new)

    def _mask(self, modality: str) -> Callable[[Tensor], Tensor]:
        value = self._mask_value
        number = value.get(modality, 0.0) if isinstance(value, Mapping) else value
        return lambda tensor: torch.full_like(tensor, number)


def _get(args: Args, kwargs: Kwargs, place: Place) -> Any:
    if isinstance(place, int) and place < len(args):
        return args[place]
    if isinstance(place, str) and place in kwargs:
        return kwargs[place]
    if isinstance(place, str) and _is_mapping(args) and place in args[0]:
        return args[0][place]
    raise ConfigError(
        "Parameter `inputs` should name arguments of the model's forward (default: those named as the modalities, else "
        f"the first, the second, ...). Found {place!r}, but the call has {len(args)} positional arguments, the names "
        f"{sorted(map(str, _names(args, kwargs)))}: pass `inputs={{'text': ('ids', 'mask'), 'image': 'pixels'}}`."
    )


def _is_mapping(args: Args) -> bool:
    return len(args) == 1 and isinstance(args[0], Mapping)


def _names(args: Args, kwargs: Kwargs) -> Collection[str]:
    return {*(args[0] if _is_mapping(args) else ()), *kwargs}


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return ``value`` with each tensor in it replaced; lists, tuples and mappings are walked, the rest is kept."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        items = (map_tensors(item, function) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    return value


def with_samples(value: Any, more: Any) -> Any:
    """Return inputs (B, ...) with further samples behind them, or ``None`` where they cannot be concatenated.

    Args:
        value: Tensors (B, ...) in lists, tuples and mappings.
        more: The same with other tensors, (b, ...); all else is identical.
    """
    own, others = tensors_in(value), tensors_in(more)
    is_plain = all(_is_plain(tensor) and tensor.dim() for tensor in (*own, *others))
    if not own or not is_plain or len({len(t) for t in own}) > 1 or len({len(t) for t in others}) > 1:
        return None
    if _is_packed(value) or any(a.shape[1:] != b.shape[1:] for a, b in zip(own, others, strict=True)):
        return None
    rest = iter(others)
    return map_tensors(value, lambda tensor: torch.cat([tensor, next(rest)]))


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


def _is_packed(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_is_packed, value.values()))
    if isinstance(value, PackedSequence):
        return True
    return isinstance(value, list | tuple) and any(map(_is_packed, value))


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in lists, tuples and mappings, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    return found
