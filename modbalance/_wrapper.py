"""A torch optimizer around another one: groups, state and defaults are shared, never copied."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer, optimizer

Step = Callable[..., Any]


def with_step_hooks(step: Step) -> Step:
    """Return ``step`` with the hooks on steps and the range in profiles that torch gives to every optimizer.

    Without hook and profile it is the bare function: the inner optimizer has a range of its own, and twice the cost of
    one weighs in a small step.
    """
    observed = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def chosen(self: Wrapper, *args: Any, **kwargs: Any) -> Any:
        return (observed if self._step_is_observed else step)(self, *args, **kwargs)

    chosen.hooked = True  # type: ignore[attr-defined]  # torch wraps the step of a class that lacks this mark
    return chosen


class Wrapper(Optimizer):
    """A real `torch.optim.Optimizer` around another, so that schedulers, scalers and checkpoint helpers accept it."""

    _inner: Optimizer

    def __init__(self, inner: Optimizer) -> None:
        self._inner = inner
        self._build_hook_tables()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the inner optimizer."""
        return self._inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._inner.param_groups = groups

    @property
    def state(self) -> Any:
        """State of the inner optimizer."""
        return self._inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self._inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults of the inner optimizer."""
        return self._inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._inner.defaults = defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients. Statistics of the current step are kept: a closure may call this after the criterion."""
        self._inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the inner optimizer."""
        self._inner.add_param_group(param_group)

    @property
    def _step_is_observed(self) -> bool:
        own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        of_all = optimizer._global_optimizer_pre_hooks or optimizer._global_optimizer_post_hooks
        # Dynamo of torch 2.6 does not know the last function, and a profile shows compiled code anyway.
        is_profiled = not torch.compiler.is_compiling() and torch._C._autograd._profiler_enabled()
        return bool(own or of_all or is_profiled)

    def _about_to_scale(self) -> None:
        """Called when a GradScaler is about to take a step or to skip it."""

    def __getstate__(self) -> dict[str, Any]:
        # Hook tables are rebuilt; a scheduler's wrapper around `step` belongs to this object.
        return {k: v for k, v in self.__dict__.items() if k != "step" and not k.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build_hook_tables()

    def _build_hook_tables(self) -> None:
        # Optimizer.__init__ would empty the state of the inner optimizer; its __setstate__ adds a default to it.
        defaults = dict(self._inner.defaults)
        Optimizer.__setstate__(self, {})
        self._inner.defaults.clear()
        self._inner.defaults.update(defaults)

    def __getattr__(self, name: str) -> Any:
        # GradScaler reads this right before it takes a step or skips it, and a skip shows nowhere else. With the
        # attribute present, the scaler would leave skipping to the optimizer, so it stays absent.
        if name == "_step_supports_amp_scaling":
            self._about_to_scale()
        if name.startswith("_") or "_inner" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._inner, name)
