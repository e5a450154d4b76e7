"""Several optimizers with disjoint parameters as one: a step steps each, groups and state are theirs, not copied.

Muon, for example, takes matrices only, and stands beside AdamW for the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modbalance.errors import CheckpointError, ConfigError
from modbalance.gradients import optimized

Groups = list[dict[str, Any]]


class JointOptimizer(Optimizer):
    """Several optimizers as one.

    State dicts are flat, as torch's: the groups of all optimizers in order, with parameters numbered through.

    Args:
        optimizers: Two or more optimizers.

    Raises:
        ConfigError: Two of them update one parameter, or one of them needs a closure.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        _check(optimizers)
        self.optimizers = tuple(optimizers)
        # Optimizer.__init__ would make groups and state of its own.
        Optimizer.__setstate__(self, {})

    @property
    def param_groups(self) -> Groups:
        """Parameter groups of all optimizers, in order; the list is new, the groups are theirs."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @param_groups.setter
    def param_groups(self, groups: Groups) -> None:
        remaining = list(groups)
        for optimizer in self.optimizers:
            count = len(optimizer.param_groups)
            optimizer.param_groups, remaining = remaining[:count], remaining[count:]

    @property
    def state(self) -> Any:
        """State of all optimizers by parameter; entries are read, written and removed in that of their owner."""
        return _JointState(self.optimizers)

    @state.setter
    def state(self, state: MutableMapping[Tensor, Any]) -> None:
        for optimizer in self.optimizers:
            ours = {id(parameter) for parameter in optimized(optimizer)}
            kept = {parameter: entry for parameter, entry in state.items() if id(parameter) in ours}
            optimizer.state.clear()
            optimizer.state.update(kept)

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings that all optimizers know, with the values of the first: schedulers look here for momentum."""
        first, *others = (optimizer.defaults for optimizer in self.optimizers)
        return {name: value for name, value in first.items() if all(name in defaults for defaults in others)}

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        # torch writes an entry of its own here when it restores an optimizer; each of ours has it already.
        pass

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all optimizers; a closure is evaluated once, before the first."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def train(self) -> None:
        """Switch schedule-free optimizers to the weights of training."""
        self._switch("train")

    def eval(self) -> None:
        """Switch schedule-free optimizers to the weights of evaluation."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        for optimizer in self.optimizers:
            if hasattr(optimizer, mode):
                getattr(optimizer, mode)()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: it is open which optimizer should take the group."""
        raise ConfigError(
            "A parameter group should be added to one of the optimizers. Found a call of the wrapper around "
            f"{len(self.optimizers)}: build BalancedOptimizer again after `optimizer.add_param_group`."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all optimizers as one."""
        state: dict[int, Any] = {}
        groups: Groups = []
        for optimizer in self.optimizers:
            saved, first = optimizer.state_dict(), sum(len(group["params"]) for group in groups)
            state |= {first + index: entry for index, entry in saved["state"].items()}
            groups += [
                group | {"params": [first + index for index in group["params"]]} for group in saved["param_groups"]
            ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of all optimizers; nothing is changed if the groups do not fit."""
        saved = state_dict.get("param_groups", [])
        given, wanted = ([len(group["params"]) for group in groups] for groups in (saved, self.param_groups))
        if given != wanted:
            raise CheckpointError(
                f"The saved groups should have {wanted} parameters. Found {given}: build the optimizers in the order "
                "and with the groups of the run that saved them."
            )
        remaining = list(state_dict["param_groups"])
        for optimizer in self.optimizers:
            count = len(optimizer.param_groups)
            groups, remaining = remaining[:count], remaining[count:]
            indices = {index for group in groups for index in group["params"]}
            state = {index: entry for index, entry in state_dict["state"].items() if index in indices}
            optimizer.load_state_dict({"state": state, "param_groups": groups})

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.optimizers = state["optimizers"]
        Optimizer.__setstate__(self, {})

    def __repr__(self) -> str:
        return " and ".join(map(repr, self.optimizers))


def parts_of(optimizer: Optimizer) -> Sequence[Optimizer]:
    """Return the optimizers that several were joined from; of any other one, itself."""
    return optimizer.optimizers if isinstance(optimizer, JointOptimizer) else (optimizer,)


def name_of(optimizer: Optimizer) -> str:
    """Return the name of an optimizer's class, or of the classes of several."""
    each = parts_of(optimizer)
    return " and ".join(type(one).__name__ for one in each)


class _JointState(MutableMapping[Tensor, Any]):
    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers

    def __getitem__(self, parameter: Tensor) -> Any:
        return self._owned(parameter)[parameter]

    def __setitem__(self, parameter: Tensor, entry: Any) -> None:
        self._owned(parameter)[parameter] = entry

    def __delitem__(self, parameter: Tensor) -> None:
        state = self._owned(parameter)
        if parameter not in state:  # a defaultdict would make the entry to delete
            raise KeyError(parameter)
        del state[parameter]

    def __contains__(self, parameter: object) -> bool:
        return any(parameter in optimizer.state for optimizer in self._optimizers)

    def __iter__(self) -> Iterator[Tensor]:
        return (parameter for optimizer in self._optimizers for parameter in optimizer.state)

    def __len__(self) -> int:
        return sum(len(optimizer.state) for optimizer in self._optimizers)

    def _owned(self, parameter: Tensor) -> Any:
        for optimizer in self._optimizers:
            if any(parameter is each for each in optimized(optimizer)):
                return optimizer.state
        raise KeyError(parameter)


def _check(optimizers: Sequence[Optimizer]) -> None:
    seen: dict[int, Optimizer] = {}
    for optimizer in optimizers:
        needs_closure = inspect.signature(optimizer.step).parameters.get("closure")
        if hasattr(optimizer, "second_step") or (needs_closure and needs_closure.default is inspect.Parameter.empty):
            raise ConfigError(
                f"Optimizers that are joined should need no closure. Found {type(optimizer).__name__}: wrap it alone."
            )
        for parameter in optimized(optimizer):
            other = seen.setdefault(id(parameter), optimizer)
            if other is not optimizer:
                raise ConfigError(
                    "Optimizers that are joined should have no parameter in common: each is updated once. Found one of "
                    f"shape {tuple(parameter.shape)} in {type(other).__name__} and {type(optimizer).__name__}."
                )
