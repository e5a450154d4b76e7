"""A copy of a module's parameters and optimizer state, which takes steps ahead of the optimizer's own.

The copy is stepped by the class of the inner optimizer, with the present settings of each parameter's group and below
torch's wrapper around every step: hooks on steps, profiles and schedulers count the user's steps alone. Until `commit`
nothing has changed, so that a step which never happens leaves no trace.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from modbalance import sharding
from modbalance._joint import parts_of
from modbalance._model.modes import ModeDependence
from modbalance._model.rerun import preserved
from modbalance._steps import State, coupling, take_step
from modbalance._training import Training
from modbalance.errors import ConfigError
from modbalance.gradients import optimized
from modbalance.method import kept

__all__ = ["Shadow"]


class Shadow:
    """A copy of one module's trained parameters, and of their state in the inner optimizer.

    Args:
        training: The training.
        module: The module.
        method: Name of the method, for messages.

    Attributes:
        module: The module itself, whose values change in `commit` alone.

    Raises:
        ConfigError: The inner optimizer cannot step single parameters ahead of the others, the gradients are clipped
            jointly, the parameters are sharded, or none of them is trained.
    """

    def __init__(self, training: Training, module: nn.Module, method: str) -> None:
        self.module = module
        self._training = training
        self._method = method
        self._modes = ModeDependence(module, ())
        self._named: dict[str, nn.Parameter] = {}
        self._values: dict[str, Tensor] = {}
        self._states: dict[str, State] = {}
        self._leaves: dict[str, Tensor] = {}
        self._stepped: set[str] = set()
        self._check()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_named": {}, "_values": {}, "_states": {}, "_leaves": {}, "_stepped": set()}

    # What a plugin calls, in this order

    def begin(self) -> None:
        """Start from the values and the state that the parameters have now; drop steps that were not committed."""
        state = self._training.optimizer.state
        self._named = self._parameters()
        self._values = {name: p.detach() for name, p in self._named.items()}
        self._states = {name: _copied(state[p]) if p in state else {} for name, p in self._named.items()}
        self._stepped = set()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the module's output with the copied values, with graph to ``x`` and to them.

        It is computed in the type of the values, outside of autocast. Buffers and the random state are left as they
        were: running statistics are those of the forward alone.
        """
        self._leaves = {name: value.detach().requires_grad_() for name, value in self._values.items()}
        return self._run(self._leaves, x)

    def original(self, x: Tensor) -> Tensor:
        """Return the module's output with the parameters themselves, computed in the same way, with graph to them."""
        return self._run({}, x)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Return the gradients of a loss of the latest output by the copied values, by name; ``loss`` keeps its graph.

        Values that the loss does not depend on are left out; on several ranks a loss without any graph, as where a
        rank has no target that counts, has gradients of 0, since the other ranks reduce theirs.
        """
        leaves = self._leaves
        if not (loss.requires_grad and leaves):
            is_alone = self._training.ranks.count == 1
            return {} if is_alone else {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        with torch.autocast(loss.device.type, enabled=False):  # a backward inside of it would round in products
            found = torch.autograd.grad(loss, [*leaves.values()], retain_graph=True, allow_unused=True)
        return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}

    def step(self, gradients: Mapping[str, Tensor], unless: Tensor | None = None) -> None:
        """Step the copy along gradients.

        Args:
            gradients: By name, on this rank; those of all ranks have to be equal.
            unless: 0-dim, boolean: whether values and state stay as they are; ``None``: they do not. A parameter that
                had no state then has that of a step of 0 along 0, with a count of 0.
        """
        before = {} if unless is None else {name: _copied(self._states[name]) for name in gradients}
        copies = {name: nn.Parameter(self._values[name].clone()) for name in gradients}
        state: defaultdict[Tensor, State] = defaultdict(dict)
        for name, p in copies.items():
            p.grad = gradients[name].detach().to(p)
            if self._states[name]:
                state[p] = self._states[name]
            elif unless is not None:
                # What an optimizer begins with (sizes of steps, products) is known to its step alone; the value is
                # masked for the sake of weight decay.
                p.grad = p.grad.masked_fill(unless, 0)
                p.data.masked_fill_(unless, 0)
        take_step(self._training.optimizer, {id(self._named[name]): p for name, p in copies.items()}, state)
        for name, p in copies.items():
            value, entries = p.detach(), state.get(p, {})
            if unless is not None:
                value = torch.where(unless, self._values[name], value)
                old = before[name] or {key: new for key, new in entries.items() if key != "step"}
                entries = {key: _unless(unless, old.get(key), new) for key, new in entries.items()}
            self._values[name], self._states[name] = value, entries
        self._stepped |= copies.keys()

    def with_zero_gradients(self, loss: Tensor) -> Tensor:
        """Return the loss with a zero gradient for each parameter, which DDP and a backward without encoders need.

        Where the loss is not finite the gradient is NaN instead, so that a GradScaler skips the step.
        """
        zero = loss.detach() * 0
        for p in self._named.values():
            loss = loss + (p.flatten()[:1].to(loss) * zero).sum()
        return loss

    def drop_gradients(self) -> None:
        """Remove the gradients of the parameters, so that the inner step leaves these alone. For `modulate()`."""
        for p in self._named.values():
            p.grad = None

    def commit(self) -> None:
        """Write values and state into the parameters and the inner optimizer; not in a dry run."""
        if self._training.dry_run:
            return
        state = self._training.optimizer.state
        for name, p in self._named.items():
            if name in self._stepped:
                p.detach().copy_(self._values[name])
                present = dict(state[p]) if p in state else {}
                for key, value in self._states[name].items():
                    present[key] = kept(present.get(key), value) if isinstance(value, Tensor) else value
                if present:
                    state[p] = present
        self._values, self._states, self._leaves, self._stepped = {}, {}, {}, set()

    # Inside

    def _parameters(self) -> dict[str, nn.Parameter]:
        ours = {id(p) for p in optimized(self._training.optimizer)}
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad and id(p) in ours}

    def _run(self, values: dict[str, Tensor], x: Tensor) -> Tensor:
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), x.dtype)
        with torch.autocast(x.device.type, enabled=False), self._unchanged():
            output: Tensor = functional_call(self.module, values, (x.to(dtype),))
        return output

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        # A fork of the random state costs more than a small head, and is refused in a CUDA graph.
        unchanged: AbstractContextManager[object] = (
            nullcontext() if self._modes.is_excluded() else preserved([self.module], None)
        )
        with self._training.watch.paused(), unchanged:
            yield

    def _check(self) -> None:
        named = self._parameters()
        if not named:
            raise ConfigError(
                f"Method `{self._method}` steps the parameters of {type(self.module).__name__} itself. Found none of "
                "them in the optimizer that require a gradient: name another module, or unfreeze it."
            )
        if any(sharding.is_sharded(p) for p in self.module.parameters()):
            raise ConfigError(
                f"The parameters that method `{self._method}` steps itself should be whole. Found some of "
                f"{type(self.module).__name__} that `fully_shard` shards: train with DistributedDataParallel instead."
            )
        if self._training.clip is not None and self._training.clip.norm is not None:
            raise ConfigError(
                f"Method `{self._method}` takes steps before all gradients are known, and should go without a joint "
                f"clip. Found `clip_grad_norm = {self._training.clip.norm}`: leave it out."
            )
        for part in parts_of(self._training.optimizer):
            self._check_optimizer(part, named)

    def _check_optimizer(self, optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> None:
        reason = coupling(optimizer)
        if reason is None:
            reason = self._trial(optimizer, named)
        if reason is not None:
            raise ConfigError(
                f"Method `{self._method}` steps some parameters more often than others, and needs an optimizer that "
                f"updates each by its own gradient and state. Found {type(optimizer).__name__}, {reason}: use one such "
                "as SGD or AdamW."
            )

    def _trial(self, optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> str | None:
        """Return what a step of copies along zeros shows against the optimizer, as a clause."""
        stand_ins = {id(p): nn.Parameter(p.detach().clone()) for p in named.values()}
        state: defaultdict[Tensor, State] = defaultdict(dict)
        for p in named.values():
            stand_ins[id(p)].grad = torch.zeros_like(p)
            if p in optimizer.state:
                state[stand_ins[id(p)]] = _copied(optimizer.state[p])
        try:
            changed = take_step(optimizer, stand_ins, state)
        except Exception as error:  # of the class of a user, whose demands are not known
            return f"whose step of copies raised {type(error).__name__}: {error}"
        return f"which counts steps in its settings ({', '.join(changed)})" if changed else None


def _copied(state: Mapping[str, Any]) -> State:
    return {k: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()}


def _unless(condition: Tensor, old: Any, new: Any) -> Any:
    """Return the old value where the condition holds; a count on another device goes on."""
    if not isinstance(new, Tensor) or new.device != condition.device:
        return new
    return torch.where(condition, torch.zeros_like(new) if old is None else old, new)
