"""A typed front to pluggy: the methods of one optimizer, in order, and calls of single hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pluggy

from modbalance.errors import ConfigError
from modbalance.hookspecs import HOOKS
from modbalance.method import Method
from modbalance.registry import plugin_manager
from modbalance.run import Run

STEP_HOOKS = [hook for hook in HOOKS if hook.split("_", 1)[1] not in ("methods", "setup", "epoch_end")]


class Hooks:
    """The hooks of the methods of one optimizer; every optimizer has a plugin manager of its own."""

    def __init__(self, methods: Sequence[Method], run: Run) -> None:
        names = [method.name for method in methods]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"Each method should be given once. Found {name!r} {names.count(name)} times.")
        self.run = run
        self.methods = list(methods)
        self._manager = plugin_manager(dict(zip(names, methods, strict=True)))
        self._callers: dict[tuple[str, str], pluggy.HookCaller] = {}

    def active(self, epoch: int) -> list[Method]:
        """Return the methods whose window holds ``epoch``, in order."""
        return [method for method in self.methods if method.is_active(epoch)]

    def implementers(self, hook: str, methods: Sequence[Method] | None = None) -> list[Method]:
        """Return those of ``methods`` (default: all) that implement a hook, in order."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        names = {implementation.plugin_name for implementation in caller.get_hookimpls()}
        return [method for method in (self.methods if methods is None else methods) if method.name in names]

    def stepping(self, methods: Sequence[Method]) -> list[Method]:
        """Return those of ``methods`` that look at training steps, in order; the others act between epochs alone."""
        found = {method.name for hook in STEP_HOOKS for method in self.implementers(hook, methods)}
        return [method for method in methods if method.name in found]

    def call(self, method: Method, hook: str, **arguments: Any) -> Any:
        """Call a hook of one method and return its result; what it logs goes under the method's name."""
        caller = self._callers.get((method.name, hook))
        if caller is None:
            others = [other for other in self.methods if other is not method]
            caller = self._manager.subset_hook_caller(hook, others)
            self._callers[method.name, hook] = caller
        before, self.run.method = self.run.method, method
        try:
            results: list[Any] = caller(**arguments)
        finally:
            self.run.method = before
        return results[0] if results else None

    def call_each(self, hook: str, methods: Sequence[Method], **arguments: Any) -> Iterator[tuple[Method, Any]]:
        """Call a hook of every method that implements it, in order, and yield (method, result)."""
        for method in self.implementers(hook, methods):
            yield method, self.call(method, hook, **arguments)


def check_needs(hooks: Hooks) -> None:
    """Raise a ConfigError unless the methods go together, and with the model and the modalities."""
    replacing = [method.name for method in hooks.implementers("modbalance_logits")]
    if len(replacing) > 1:
        raise ConfigError(f"At most one method should replace the logits. Found {' and '.join(replacing)}.")
    if hooks.implementers("modbalance_coefficients"):
        hooks.run.topology.require_disjoint()
    for method in hooks.methods:
        _check_need_of(method, hooks.run)


def _check_need_of(method: Method, run: Run) -> None:
    modalities = run.modalities
    if len(modalities) < method.min_modalities:
        raise ConfigError(
            f"Method `{method.name}` needs at least {method.min_modalities} modalities. Found "
            f"{list(modalities)}: pass `modalities={{'audio': 'audio_net', ...}}` with `model=`, or give the "
            "parameter groups of the optimizer a key, {'params': ..., 'modality': 'audio'}."
        )
    if "model" in method.needs and run.model is None:
        raise ConfigError(
            f"Method `{method.name}` runs parts of the model itself. Found no model: pass `model=`, `modalities=` "
            "and `fusion=` to BalancedOptimizer."
        )
