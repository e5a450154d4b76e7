"""Reports to the user: logged quantities and counters, warnings that are given once, the text of `opt.describe()`."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence

import attrs
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from modbalance.errors import ModbalanceWarning
from modbalance.method import Method


@attrs.frozen(eq=False)
class Snapshot:
    """Values of one moment.

    Attributes:
        keys: Their names, in order.
        numbers: Those that were on the host.
        vectors: The others by device: names, and values (N,) in single precision.
    """

    keys: Sequence[str]
    numbers: Mapping[str, float]
    vectors: Mapping[torch.device, tuple[Sequence[str], Tensor]]

    @classmethod
    def of(cls, values: Mapping[str, Tensor | float]) -> Snapshot:
        """Copy 0-dim tensors on their devices, one operation for each."""
        by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
        for key, value in values.items():
            if isinstance(value, Tensor):
                by_device.setdefault(value.device, []).append((key, value))
        vectors = {
            device: ([key for key, _ in entries], torch.stack([each.reshape(()).float() for _, each in entries]))
            for device, entries in by_device.items()
        }
        numbers = {key: float(value) for key, value in values.items() if not isinstance(value, Tensor)}
        return cls([*values], numbers, vectors)


def moved(snapshots: Sequence[Snapshot]) -> list[dict[str, float]]:
    """Return the values of snapshots, moved to the host in one copy per device for all of them."""
    found = [dict(each.numbers) for each in snapshots]
    for device in dict.fromkeys(device for each in snapshots for device in each.vectors):
        parts = [(place, *each.vectors[device]) for place, each in enumerate(snapshots) if device in each.vectors]
        values = iter(torch.cat([vector for _, _, vector in parts]).tolist())
        for place, keys, _ in parts:
            found[place].update({key: next(values) for key in keys})
    return [{key: numbers[key] for key in each.keys} for each, numbers in zip(snapshots, found, strict=True)]


class Telemetry:
    """The latest value of every logged quantity, and counters; tensors stay on their device until `read`."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor | float] = {}
        self._counters: dict[tuple[str, ...], Tensor] = {}
        self._warnings: dict[str, str] = {}

    def log(self, key: str, value: Tensor | float) -> None:
        """Keep the latest value of ``key``: a number or a 0-dim tensor, which is not read."""
        self._values[key] = value.detach() if isinstance(value, Tensor) else value

    def count(self, key: str, increment: Tensor, warning: str | None = None) -> None:
        """Add ``increment`` (0-dim) to the counter ``key``; the first `read` with it above 0 gives ``warning``."""
        self.count_all([key], increment.reshape(1), warning)

    def count_all(self, keys: Sequence[str], increments: Tensor, warning: str | None = None) -> None:
        """Add the elements of ``increments``, (N,), to N counters that are always counted together, in place."""
        together, increments = (*keys,), increments.detach()
        counts = self._counters.get(together)
        if counts is None:
            self._warnings |= dict.fromkeys(keys, warning) if warning is not None else {}
            wide = torch.promote_types(increments.dtype, torch.int64)
            counts = torch.zeros(len(keys), dtype=wide, device=increments.device)
        self._counters[together] = counts.to(increments.device).add_(increments)

    def forget(self, method: str) -> None:
        """Drop the values, not the counters, of a method whose window is over."""
        self._values = {key: v for key, v in self._values.items() if not key.startswith(method + "/")}

    def read(self) -> dict[str, float]:
        """Move everything to the host, one copy per device."""
        (numbers,) = moved([self.snapshot()])
        self.warn_of(numbers)
        return numbers

    def snapshot(self, further: Mapping[str, Tensor | float] | None = None) -> Snapshot:
        """Return everything as it is now and ``further`` values, in copies on their devices; nothing is read."""
        return Snapshot.of(self._values | self._counted() | dict(further or {}))

    def warn_of(self, numbers: Mapping[str, float]) -> None:
        """Give the warnings of counters that are above 0 in values that were read."""
        due = [warning for key, warning in self._warnings.items() if numbers.get(key, 0) > 0]
        for warning in dict.fromkeys(due):
            self._warnings = {key: other for key, other in self._warnings.items() if other != warning}
            warnings.warn(warning, ModbalanceWarning, stacklevel=depth_of_caller())

    def _counted(self) -> dict[str, Tensor]:
        counted: dict[str, Tensor] = {}
        for keys, counts in self._counters.items():
            for key, count in zip(keys, counts, strict=True):
                counted[key] = counted[key] + count if key in counted else count
        return counted


# Warnings

MISSING_CRITERION = (
    "`step()` found no criterion call since the last step, so the gradients stay as they are and {methods} does not "
    "act. Take the loss from `criterion = opt.criterion(loss_fn)` and call the model in training mode; outside of a "
    "method's window nothing is needed. Given once."
)
TWO_FORWARDS = (
    "The model ran twice in training mode before a criterion call, and methods see the last forward alone. Call the "
    "criterion after each forward, and run what is not for training in eval mode or under `torch.no_grad()`. Given "
    "once."
)
EARLIER_OPTIMIZER = (
    "An earlier BalancedOptimizer replaced features or inputs of this model. Its hooks were taken off, so that it no "
    "longer acts. Call `.remove()` on an optimizer that you replace; several methods go into one, `method=[...]`."
)
MISSING_LOSS = (
    "`step()` found no criterion call since the last step, so that {methods} replaced features in the forward, but "
    "nothing added what it trains them by. Take the loss from `criterion = opt.criterion(loss_fn)`. Given once."
)
EPOCH_NEVER_MOVES = (
    "Training went on after {count} evaluations, and `opt.epoch` is still 0. If each of them ended an epoch, {methods} "
    "would act otherwise by now: call `opt.end_epoch()` after each epoch, or set `opt.epoch`, as in `opt.epoch = 0` if "
    "all of them belong to the first. Given once."
)
REPLACED_PARAMETERS = (
    "The optimizer updates {count} parameters that the model no longer has, such as {name!r}, and not what stands in "
    "their place. Replace or shard (`fully_shard`) modules before the torch optimizer and BalancedOptimizer are built. "
    "Given once."
)
SAVED_WITHIN_A_STEP = (
    "A state was saved between the micro-batches of one step: it is that of the last whole step, and the gradients "
    "since then are in no checkpoint. Save after `opt.step()`, or repeat these micro-batches after loading. Given once."
)
NOTHING_TO_SCALE = (
    "{methods} scales gradients of the encoders, but this optimizer updates none of their parameters, so that it does "
    "nothing. Give the optimizer the parameters that the model has now: sharding, or loading with `assign=True`, makes "
    "new ones. Given once."
)
CHANGED_GRADIENTS = (
    "Gradients were changed in place between the backward and the modulation by {methods}. A clip there bounds other "
    "gradients than those of the step: call `opt.modulate()` before it, as `modbalance.lightning`, `.accelerate` and "
    "`.transformers` do, or switch the clip of the framework off and pass `clip_grad_norm=` to BalancedOptimizer. A "
    "division, as for a mean over ranks, does no harm. Given once."
)
PRESET_CLIPS = (
    "Two BalancedOptimizers of one model take steps in turn, and each clips the gradients of its own parameters by the "
    "preset of its method: the norm is not that of the whole model, and what both update is clipped twice. Give inner "
    "optimizers and methods to one, `BalancedOptimizer([...], method=[...])`, or pass `clip_grad_norm=` to each. Given "
    "once."
)
SCALE_INVARIANCE = (
    "{methods} scales gradients, and the update of {optimizer} hardly follows them: with gradients times 0.01 a "
    "scratch parameter moved {share} times as far (SGD: 0.01). Where that is about 1, a constant scale has almost no "
    "effect; what remains is the effect of changes of the scale. SGD shows the full effect, and so does "
    '`apply="update"`, which scales the update itself.'
)


_INNER = re.compile(r"(modbalance(_\w+)?|pluggy|torch)(\.|$)")


def depth_of_caller() -> int:
    """Return the `stacklevel` that points at the first frame outside of modbalance, its plugins, pluggy and torch."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _INNER.match(frame.f_globals.get("__name__", "")):
        depth, frame = depth + 1, frame.f_back
    return depth


class Notices:
    """Gives each warning once per optimizer."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def give(self, message: str, **words: str) -> None:
        """Warn with ``message``, unless that was done before."""
        if message not in self._given:
            self._given.add(message)
            warnings.warn(message.format(**words), ModbalanceWarning, stacklevel=depth_of_caller())


# The text of `opt.describe()`

NamedParameters = Sequence[tuple[str, Tensor]]


def describe(
    encoders: Mapping[str, NamedParameters],
    methods: Sequence[tuple[Method, Sequence[str]]],
    lines: Sequence[str],
) -> str:
    """Return two tables, modalities and methods, and further lines.

    Args:
        encoders: Named parameters of each modality's encoder, in fusion order.
        methods: Each method with the hooks that it implements, in firing order.
        lines: What stands below the tables.
    """
    console = Console(width=110, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(_modalities_table(encoders, methods))
        console.print(_methods_table(methods))
        for line in lines:
            console.print(line)
    return capture.get().rstrip()


def _modalities_table(
    encoders: Mapping[str, NamedParameters], methods: Sequence[tuple[Method, Sequence[str]]]
) -> Table:
    table = Table("modality", "parameters", "elements", "modulated by", title="Modalities, in fusion order")
    scaling = [method for method, hooks in methods if "modbalance_coefficients" in hooks]
    for modality, named in encoders.items():
        counts = [f"{method.name}: {sum(method.modulates(name, p) for name, p in named)}" for method in scaling]
        elements = sum(parameter.numel() for _, parameter in named)
        table.add_row(modality, str(len(named)), f"{elements:,}", ", ".join(counts) or "-")
    return table


def _methods_table(methods: Sequence[tuple[Method, Sequence[str]]]) -> Table:
    table = Table("method", "options", "hooks, in firing order", title="Methods, in order")
    for method, hooks in methods:
        options = "\n".join(f"{name} = {getattr(method, name)!r}" for name in method.options())
        table.add_row(method.name, options, "\n".join(hooks))
    if not methods:
        table.add_row("none", "-", "-")
    return table
