"""Saved state of a BalancedOptimizer: writing it, and checks on a loaded one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from modbalance._lifecycle import Lifecycle
from modbalance._reporting import depth_of_caller
from modbalance.errors import CheckpointError, ModbalanceWarning
from modbalance.gradients import optimized

KEY = "modbalance"
VERSION = 1
OPTIONAL = {"begun", "paths", "inner_states"}
"""Keys that only some checkpoints of this format hold."""


class Checkpoint:
    """The state of one optimizer: that of the inner one, and that of the methods under a key of its own."""

    def __init__(self, inner: Optimizer, lifecycle: Lifecycle) -> None:
        self.inner = inner
        self.lifecycle = lifecycle

    def save(self) -> dict[str, Any]:
        """Return the state; tensors, numbers, strings, and containers of them."""
        inner = self.inner.state_dict()
        return {**inner, KEY: {**self.save_own(), "inner_states": len(inner.get("state", ()))}}

    def save_own(self) -> dict[str, Any]:
        """Return the state of the methods alone."""
        self.lifecycle.warn_of_half_step()
        return self._own()

    def load(self, saved: Mapping[str, Any]) -> None:
        """Restore the state, or raise a CheckpointError and leave everything as it was."""
        own = saved.get(KEY)
        inner = {name: value for name, value in saved.items() if name != KEY}
        if own is not None:
            self._check(own)
            _warn_of_lost(own.get("inner_states", 0) - len(inner.get("state", ())) if inner else 0)
        elif self.lifecycle.methods and not self.lifecycle.is_restored:  # torch's helpers restore in two parts
            warnings.warn(
                "The loaded state holds nothing of modbalance: the inner optimizer is restored, epoch, averages and "
                "noise of the method start afresh.",
                ModbalanceWarning,
                stacklevel=3,
            )
        if inner:
            self.inner.load_state_dict(inner)
        if own is not None:
            self.lifecycle.load_state_dict(own)

    def _check(self, own: Mapping[str, Any]) -> None:
        if own.get("version") != VERSION:
            raise CheckpointError(
                f"The checkpoint should be of format version {VERSION}. Found {own.get('version')!r}: load it with the "
                "release of modbalance that wrote it."
            )
        missing = sorted(self._own().keys() - own.keys() - OPTIONAL)
        if missing:
            raise CheckpointError(f"The checkpoint should hold {missing} under `{KEY}`. Found only {sorted(own)}.")
        shapes = self._shapes()
        if own["shapes"] != shapes:
            pairs = zip(own["shapes"], shapes, strict=False)
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(own["shapes"]), len(shapes)))
            raise CheckpointError(
                f"The checkpoint should be of this model, with {len(shapes)} parameters. Found one with "
                f"{len(own['shapes'])}; the first difference is parameter {first}: "
                f"{_at(own['shapes'], first)} in the checkpoint, {_at(shapes, first)} here."
            )
        self.lifecycle.check_state(own)
        held = {*_paths(own["methods"])}
        if lost := [path for path in own.get("paths", "").splitlines() if path not in held]:
            raise CheckpointError(
                f"The state of the methods should be whole. Found no {lost[0]!r}, which was saved: torch's distributed "
                "checkpoints leave out what a new optimizer does not hold yet. Save and load "
                "`modbalance.distributed_checkpoint.MethodState(opt)` beside the results of torch's `get_state_dict`."
            )

    def _own(self) -> dict[str, Any]:
        state = self.lifecycle.state_dict()
        return {"version": VERSION, "shapes": self._shapes(), **state, "paths": "\n".join(_paths(state["methods"]))}

    def _shapes(self) -> list[list[int]]:
        return [list(parameter.shape) for parameter in optimized(self.inner)]


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of what nested containers hold, such as ``average/audio``; none of empty ones."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    if not isinstance(value, Mapping | list | tuple):
        yield path
    for key, item in items:
        yield from _paths(item, f"{path}/{key}" if path else str(key))


def _warn_of_lost(number: int) -> None:
    if number > 0:
        warnings.warn(
            f"The loaded state lacks what the inner optimizer holds for {number} parameters, such as momentum: torch's "
            "distributed checkpoints leave out what a new optimizer does not hold yet. Take both sides from torch's "
            "`get_state_dict`, with `modbalance.distributed_checkpoint.MethodState(opt)` beside them.",
            ModbalanceWarning,
            stacklevel=depth_of_caller(),
        )


def _at(shapes: list[list[int]], index: int) -> str:
    return f"shape {tuple(shapes[index])}" if index < len(shapes) else "none"
