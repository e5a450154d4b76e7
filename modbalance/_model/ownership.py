"""Parameters that the optimizer updates, by modality and method: looked up once, until the parameter groups change."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_

from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance import sharding
from modbalance._model.structure import Structure
from modbalance.gradients import optimized
from modbalance.method import Method

Named = list[tuple[str, nn.Parameter]]


class Ownership:
    """Which parameters belong to a modality, and which of them a method modulates.

    Everything is looked up anew when a parameter group gains, loses or exchanges a parameter, when a parameter is
    frozen or unfrozen, and in a new epoch.

    Args:
        structure: The model as encoders and fusion.
        optimizer: The inner optimizer.
    """

    def __init__(self, structure: Structure, optimizer: Optimizer) -> None:
        self.structure = structure
        self.optimizer = optimizer
        # Between forward and backward a sharded model may hold whole parameters in the place of the optimizer's.
        is_any = any(sharding.is_sharded(p) for p in optimized(optimizer))
        owned = [each for name in structure.modalities for each in structure.listed(name)] if is_any else []
        self._sharded = {name: p for name, p in owned if sharding.is_sharded(p)}
        self._epoch = -1
        self._seen: list[Tensor] = []
        self._trained: list[bool] = []
        self._named: dict[str, Named] = {}
        self._modulated: dict[str, dict[str, list[nn.Parameter]]] = {}

    def parameters(self, epoch: int) -> Mapping[str, Named]:
        """Return by modality (name, parameter) of its encoder, as far as the optimizer updates them."""
        self._compare(epoch)
        if not self._named:
            ours = {*map(id, self._seen)}
            for modality in self.structure.modalities:
                owned = [self._as_sharded(*each) for each in self.structure.owned(modality)]
                self._named[modality] = [(name, p) for name, p in owned if id(p) in ours]
        return self._named

    def modulated(self, method: Method, epoch: int) -> Mapping[str, list[nn.Parameter]]:
        """Return those parameters that the coefficients of a method apply to."""
        named = self.parameters(epoch)
        if method.name not in self._modulated:
            self._modulated[method.name] = {
                modality: [p for name, p in each if method.modulates(name, p)] for modality, each in named.items()
            }
        return self._modulated[method.name]

    def _as_sharded(self, name: str, parameter: nn.Parameter) -> tuple[str, nn.Parameter]:
        return name, parameter if sharding.is_sharded(parameter) else self._sharded.get(name, parameter)

    def _compare(self, epoch: int) -> None:
        now = [*optimized(self.optimizer)]
        trained = [p.requires_grad for p in now]
        # Kept parameters are alive, so that no new one can have the identity of an old one.
        same = len(now) == len(self._seen) and all(map(is_, now, self._seen))
        if not same or trained != self._trained or epoch != self._epoch:
            self._seen, self._trained, self._epoch = now, trained, epoch
            self._named, self._modulated = {}, {}
