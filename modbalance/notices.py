"""Warnings that are given once per optimizer."""

from __future__ import annotations

import re
import sys
import warnings

from torch.optim import Optimizer

from modbalance.errors import ModbalanceWarning

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
    "Training has alternated with evaluation, but `opt.epoch` is still 0, and {methods} acts in a window of epochs. "
    "Call `opt.end_epoch()` after each epoch, or set `opt.epoch`. Given once."
)
ADAM_INVARIANCE = (
    "{methods} scales gradients, and {optimizer} divides them by their own running size, so that a constant scale has "
    "almost no effect on it; what remains is the effect of changes of the scale. SGD shows the full effect."
)


_INNER = re.compile(r"(modbalance(_\w+)?|pluggy|torch)(\.|$)")


def depth_of_caller() -> int:
    """Return the `stacklevel` that points at the first frame outside of modbalance, its plugins, pluggy and torch."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _INNER.match(frame.f_globals.get("__name__", "")):
        depth, frame = depth + 1, frame.f_back
    return depth


class Notices:
    """Gives each warning once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def give(self, message: str, **words: str) -> None:
        """Warn with ``message``, unless that was done before."""
        if message not in self._given:
            self._given.add(message)
            warnings.warn(message.format(**words), ModbalanceWarning, stacklevel=depth_of_caller())


def is_adam_family(optimizer: Optimizer) -> bool:
    """Whether the update of ``optimizer`` is nearly invariant to the scale of gradients."""
    return any("adam" in cls.__name__.lower() for cls in type(optimizer).__mro__)
