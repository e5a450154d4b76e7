"""`apply="update"`: coefficients scale the update that the inner optimizer made, instead of the gradients it gets.

    p <- p_old + d + c (p_new - p_old - d)

c is the product of the coefficients of all methods, d the decoupled weight decay, -lr * weight_decay * p_old, or 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modbalance import sharding
from modbalance._decay import check_update, is_decoupled
from modbalance._joint import parts_of
from modbalance.errors import ConfigError


class Update:
    """Scales the update of one step after the other.

    It holds a copy of the parameters that a coefficient applies to, from right before the inner step to right after.

    Args:
        optimizer: The inner optimizer.

    Raises:
        ConfigError: Its step is no update that can be scaled, or its weight decay is of an unknown kind.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        check_update(optimizer)
        self.optimizer = optimizer
        self._coefficients: dict[int, tuple[Tensor, list[Tensor]]] = {}
        self._old: list[Tensor] = []
        self._is_decoupled: dict[tuple[int, int], bool] = {}
        for each in self._groups():
            self._decouples(*each)

    def before_step(self, scaled: Iterable[tuple[Sequence[Tensor], Tensor]]) -> None:
        """Copy the parameters that are to be scaled and will move.

        Args:
            scaled: Parameters with a gradient, and a coefficient of their update, 0-dim; those of one parameter are
                multiplied.

        Raises:
            ConfigError: The inner step is under way, and evaluates its closure once more.
        """
        if self._old:
            raise ConfigError(
                '`apply="update"` should scale the update of one gradient. Found that the step of '
                f"{type(self.optimizer).__name__} evaluates its closure several times: leave "
                '`apply="update"` out.'
            )
        self._coefficients = {}
        for parameters, coefficient in scaled:
            for parameter in parameters:
                self._coefficients.setdefault(id(parameter), (parameter, []))[1].append(coefficient)
        with torch.no_grad():
            self._old = [sharding.local(parameter).clone() for parameter, _ in self._coefficients.values()]

    def begin(self) -> None:
        """Note that a step begins; copies that an earlier one left behind, which raised an error, go."""
        self._old = []

    def after_step(self) -> None:
        """Scale the update, which the inner optimizer has made."""
        scaled, old = self._coefficients, self._old
        self._coefficients, self._old = {}, []
        decays = self._decays() if old else {}
        products: dict[tuple[int, ...], Tensor] = {}
        with torch.no_grad():
            for (parameter, given), before in zip(scaled.values(), old, strict=True):
                key = (*map(id, given), id(parameter.device))
                if key not in products:
                    products[key] = _product(given, parameter.device)
                _scale(sharding.local(parameter), before, products[key], decays.get(id(parameter), 0.0))

    def _decays(self) -> dict[int, Any]:
        """Return lr * weight_decay, a number or 0-dim tensor, of each parameter whose decay is decoupled."""
        return {
            id(parameter): group["lr"] * group["weight_decay"]
            for place, optimizer, group in self._groups()
            if self._decouples(place, optimizer, group)
            for parameter in group["params"]
        }

    def _groups(self) -> Iterator[tuple[tuple[int, int], Optimizer, Mapping[str, Any]]]:
        for number, optimizer in enumerate(parts_of(self.optimizer)):
            for index, group in enumerate(optimizer.param_groups):
                yield (number, index), optimizer, group

    def _decouples(self, place: tuple[int, int], optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
        if not group.get("weight_decay"):
            return False  # and not for ever: a schedule may set one
        if place not in self._is_decoupled:
            self._is_decoupled[place] = is_decoupled(optimizer, group)
        return self._is_decoupled[place]


def _product(coefficients: list[Tensor], device: torch.device) -> Tensor:
    first, *others = (sharding.whole(each) for each in coefficients)
    for each in others:
        first = first * each.to(first.device)
    return first.to(device)


def _scale(new: Tensor, old: Tensor, coefficient: Tensor, decay: Any) -> None:
    """Turn new weights, in place, into old + d + coefficient * (new - old - d); ``old`` is overwritten."""
    if new.is_complex():
        new, old = torch.view_as_real(new), torch.view_as_real(old)
    wide = torch.float64 if new.dtype == torch.float64 else torch.float32
    if isinstance(decay, Tensor) or decay:
        # Where nothing moved, the optimizer left the step out, and its decay too.
        old.mul_(1 - decay * (new != old).any().to(wide))
    # At a coefficient of 1, lerp leaves the new weights bit for bit, and at 0 it returns the old ones.
    share = (1 - coefficient).to(wide)
    if new.dtype == wide:
        new.lerp_(old, share)
    else:  # in half precision the coefficient would be rounded
        new.copy_(new.to(wide).lerp_(old.to(wide), share))
