"""Base classes of methods, declared options with their checks, and declared state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, Self, cast

import attrs
import torch
from torch import Tensor

from modbalance.errors import CheckpointError, ConfigError, suggest

__all__ = [
    "Check",
    "Method",
    "Preset",
    "WindowedMethod",
    "between",
    "ge",
    "gt",
    "integer",
    "kept",
    "one_of",
    "option",
    "optional",
    "state",
]

Preset = Literal["official", "paper"]
Check = Callable[[Any], str | None]
NEEDS = (
    *("unimodal_logits", "features", "target", "loss_fn", "model", "shared_head"),
    *("classes", "categories", "accuracy", "validation"),
)
"""The values of `Method.needs`."""
PRESETS: tuple[Preset, ...] = ("official", "paper")
PLUGIN_API = (1, 0)
"""Version of the plugin API: the second number counts additions, the first one changes that break plugins."""
_WITHOUT_EDITS = {
    f"modbalance_{name}"
    for name in ("setup", "begin", "epoch_start", "inputs", "observe", "coefficients", "after_step", "epoch_end")
}
"""Hooks of a method that edit neither gradients nor the loss; what they replace or train, they do so in both ways."""


def gt(bound: float) -> Check:
    """Check for a finite number above ``bound``."""
    return lambda value: None if _is_number(value) and value > bound else f"a finite number > {bound}"


def ge(bound: float) -> Check:
    """Check for a finite number of at least ``bound``."""
    return lambda value: None if _is_number(value) and value >= bound else f"a finite number >= {bound}"


def between(low: float, high: float) -> Check:
    """Check for a number in the closed interval from ``low`` to ``high``."""
    return lambda value: None if _is_number(value) and low <= value <= high else f"a number in [{low}, {high}]"


def integer(low: int) -> Check:
    """Check for a whole number of at least ``low``."""
    return lambda value: (
        None if isinstance(value, int) and not isinstance(value, bool) and value >= low else f"an integer >= {low}"
    )


def one_of(*choices: Any, or_callable: bool = False) -> Check:
    """Check for one of ``choices``, or for a callable where ``or_callable`` is set."""
    expected = "one of " + ", ".join(map(repr, choices)) + (" or a callable" if or_callable else "")
    return lambda value: None if (value in choices or (or_callable and callable(value))) else expected


def optional(check: Check) -> Check:
    """Check for ``None`` or a value that ``check`` admits."""

    def admit(value: Any) -> str | None:
        expected = None if value is None else check(value)
        return expected and f"None or {expected}"

    return admit


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def option(default: Any, check: Check, doc: str, *, paper: Any = attrs.NOTHING, short: Any = attrs.NOTHING) -> Any:
    """Declare an option of a method.

    Args:
        default: Value of the official preset, that of the authors' code.
        check: Returns ``None`` for a valid value, else words for the expected ones (``gt``, ``one_of``, ...).
        doc: One phrase with unit and range, printed by `modbalance show METHOD` and in the docs.
        paper: Value of the paper preset, where the paper differs from its code.
        short: Value for a training of a few epochs, where the default would never come to act in one.
    """

    def validate(method: Method, attribute: attrs.Attribute[Any], value: Any) -> None:
        if expected := check(value):
            raise ConfigError(
                f"Option `{attribute.name}` of method `{method.name}` should be {expected}. "
                f"Found `{attribute.name} = {value!r}`."
            )

    metadata = {"doc": doc, "paper": default if paper is attrs.NOTHING else paper}
    if short is not attrs.NOTHING:
        metadata["short"] = short
    return attrs.field(default=default, validator=validate, metadata=metadata)


def state(default: Any, *, on_host: bool = False) -> Any:
    """Declare state of a method: a tensor, number, string, ``None``, or lists and dicts of these.

    Declared state is saved and restored with the optimizer; change it in ``modbalance_after_step`` and in the epoch
    hooks only, so that a step which never happens leaves no trace.

    Args:
        default: Value before the first step.
        on_host: Whether its tensors stay on the CPU when a checkpoint is loaded, as copies of weights do.
    """
    metadata = {"state": True, "on_host": on_host}
    return attrs.field(factory=lambda: copy.deepcopy(default), init=False, repr=False, metadata=metadata)


def kept(old: Tensor | None, new: Tensor) -> Tensor:
    """Return a new value of declared state in the memory of the old one.

    State that keeps its place may be part of a CUDA graph. Where there is no old value of this shape, type and device,
    the new one itself is returned: nothing else may change it later.
    """
    if old is None or (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device):
        return new.detach()
    return old.copy_(new.detach())


@attrs.define(eq=False, kw_only=True)
class Method:
    """Base class of all methods: subclass it, declare options, implement hooks (`modbalance.hookspecs`).

    Class attributes:
        name: Name of the method, equal to the name of its entry point.
        needs: Inputs of the hooks: any of ``unimodal_logits``, ``features``, ``target``, ``loss_fn``, ``model``. The
            model is asked for when the optimizer is built, a fitting target in the criterion, the rest on first use.
            ``shared_head`` tells tests which model suits: one whose fusion is one head for every modality.
            And what the data must have: ``classes``, one class index per sample as the target; ``categories``,
            targets that are classes or labels, not numbers; ``accuracy``, that of each modality; ``validation``,
            samples that are held out of training.
        min_modalities: Smallest number of modalities that the method is defined for.
        acts_in_eval: Whether the method replaces the logits in evaluation too.
        reduced: Names of sums of `modbalance_observe` that are the same on all ranks already, as those of `run.sums`:
            they are added over micro-batches alone.
        preset_clips: By preset, the `clip_grad_norm` that applies unless the user passes one.
        presets: The presets that there are; without ``paper`` where its text was not compared with the code.
        excluded_hooks: Hooks that no other method may implement beside it, such as those whose effect it would undo.
        plugin_api: Lowest version of the plugin API that the method needs, see `PLUGIN_API`.
        suits: By finding of `modbalance.diagnose`, ``starved``, ``dominated`` or ``conflict``, one sentence on why the
            paper proposes the method for it.
        step_cost: Time of a step over that of the bare optimizer, > 0, as measured; ``None``: not measured.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Collection[str]] = frozenset()
    min_modalities: ClassVar[int] = 1
    acts_in_eval: ClassVar[bool] = False
    reduced: ClassVar[Collection[str]] = frozenset()
    preset_clips: ClassVar[Mapping[str, float]] = {}
    presets: ClassVar[Collection[Preset]] = PRESETS
    excluded_hooks: ClassVar[Collection[str]] = frozenset()
    plugin_api: ClassVar[tuple[int, int]] = (1, 0)
    suits: ClassVar[Mapping[str, str]] = {}
    step_cost: ClassVar[float | None] = None

    preset: Preset = attrs.field(default="official", repr=False)

    @classmethod
    def configure(cls, preset: Preset = "official", **options: Any) -> Self:
        """Return a method with the options of ``preset``, overridden by ``options``.

        Raises:
            ConfigError: An option is unknown or out of its range, or the preset is unknown.
        """
        declared = cls.options()
        if preset not in PRESETS:
            raise ConfigError(f"Parameter `preset` should be 'official' or 'paper'. Found `preset = {preset!r}`.")
        if preset not in cls.presets:
            raise ConfigError(
                f"Parameter `preset` of method `{cls.name}` should be 'official', the authors' code. Found "
                f"`preset = {preset!r}`, of whose source no values could be confirmed: set options one by one."
            )
        for name in options:
            if name not in declared:
                raise ConfigError(f"Method `{cls.name}` has no option `{name}`. {suggest(name, declared)}")
        base = {name: field.metadata["paper"] for name, field in declared.items()} if preset == "paper" else {}
        return cls(preset=preset, **(base | options))

    @classmethod
    def options(cls) -> dict[str, attrs.Attribute[Any]]:
        """Return the declared options by name."""
        return {field.name: field for field in attrs.fields(cast(Any, cls)) if "doc" in field.metadata}

    def is_active(self, epoch: int) -> bool:
        """Whether hooks but the setup and the beginning fire in this 0-based epoch.

        Outside, the optimizer is bitwise the inner one. For the hook between epochs see `ends_epoch`.
        """
        return True

    def ends_epoch(self, epoch: int) -> bool:
        """Whether `modbalance_epoch_end` fires after this 0-based epoch; by default where the method is active.

        Override it in a method whose authors' code draws from a loader after every epoch: a loader that shuffles yields
        other batches later on, if the number of draws differs.
        """
        return self.is_active(epoch)

    def starts_before_forward(self) -> bool:
        """Whether `modbalance_epoch_start` has to fire before the first forward of an epoch, not only before its loss.

        For a method that runs the model there: a forward whose buffers change may not stand between another forward
        and its backward. A model that is compiled in place has its graph broken once an epoch.
        """
        return False

    def modulates(self, name: str, parameter: Tensor) -> bool:
        """Whether the coefficient of a modality applies to this parameter of its encoder."""
        return True

    def update_refusal(self) -> str | None:
        """Return why the method cannot go with `apply="update"`, and the fix, as a clause; ``None``: it can.

        There the inner optimizer gets the gradients without coefficients, and its update is multiplied by these. By
        default a method is refused if it implements a hook by which it edits gradients or the loss. Override it where
        such a hook does something beside the coefficients that holds as it is.
        """
        edits = [name for name in dir(type(self)) if name.startswith("modbalance_") and name not in _WITHOUT_EDITS]
        if not edits:
            return None
        hooks = " and ".join(f"`{name}`" for name in edits)
        return f"which edits gradients or the loss in {hooks}: leave `apply` out"

    def exemptions(self) -> Mapping[str, str]:
        """Return the rules of `modbalance.testing` that do not hold with these options: name and reason."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the declared state."""
        return {name: _cloned(getattr(self, name)) for name in self._state_names()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore the declared state from a state that `check_state` admitted."""
        for name, value in saved.items():
            setattr(self, name, copy.deepcopy(value))

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Raise a CheckpointError unless ``saved`` holds just the state that this method declares."""
        if set(saved) != set(self._state_names()):
            raise CheckpointError(
                f"The saved state of method `{self.name}` should hold {sorted(self._state_names())}. "
                f"Found {sorted(saved)}: it was written by another version of the method."
            )

    @classmethod
    def moved_state(cls, saved: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Return a saved state on ``device``, but for tensors that were declared to stay on the host."""
        on_host = {field.name for field in attrs.fields(cast(Any, cls)) if field.metadata.get("on_host")}
        return {name: value if name in on_host else to_device(value, device) for name, value in saved.items()}

    @classmethod
    def _state_names(cls) -> list[str]:
        return [field.name for field in attrs.fields(cast(Any, cls)) if "state" in field.metadata]


@attrs.define(eq=False, kw_only=True)
class WindowedMethod(Method):
    """A method that acts in the epochs ``start_epoch`` to ``end_epoch``, both inclusive and 0-based."""

    start_epoch: int = option(0, integer(0), "first epoch of the window, 0-based, inclusive")
    end_epoch: int | None = option(
        None, optional(integer(0)), "last epoch of the window, 0-based, inclusive; None: no end"
    )

    def __attrs_post_init__(self) -> None:
        if self.end_epoch is not None and self.end_epoch < self.start_epoch:
            raise ConfigError(
                f"Option `end_epoch` of method `{self.name}` should be >= start_epoch = {self.start_epoch}. "
                f"Found `end_epoch = {self.end_epoch}`."
            )

    def is_active(self, epoch: int) -> bool:
        """Whether ``epoch`` lies in the window."""
        return self.start_epoch <= epoch and (self.end_epoch is None or epoch <= self.end_epoch)


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cloned(item) for item in value]
    return value


def to_device(value: Any, device: torch.device) -> Any:
    """Return ``value`` with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    return value
