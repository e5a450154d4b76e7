"""Notices gradients that were changed in place between the backward and the modulation, by the count of their changes.

A clip of a framework is such a change: it bounds the norm of gradients that are then modulated, and not of those that
the inner optimizer sees. The counter of a tensor says so without a look at its values; an unscaling by GradScaler
leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd import Variable

_ROUNDS = 3
"""Rounds of callbacks at the end of a backward before the counter is read: DDP writes its means in the first two."""


class GradientWatch:
    """Watches the gradient of one parameter: a clip changes all of them."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self._gradient: Tensor | None = None
        self._version = 0
        self._handle = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            self._accumulated
        )

    def was_changed(self) -> bool:
        """Return whether the gradient that the last backward left was changed in place since; asked once a step."""
        noted, self._gradient = self._gradient, None
        return noted is not None and noted is self.parameter.grad and noted._version != self._version

    def remove(self) -> None:
        """Take the hook off the parameter."""
        self._handle.remove()
        self._gradient = None

    def _accumulated(self, parameter: Tensor) -> None:
        _at_the_end_of_the_backward(self._note, _ROUNDS)

    def _note(self) -> None:
        self._gradient = self.parameter.grad
        self._version = 0 if self._gradient is None else self._gradient._version


def _at_the_end_of_the_backward(call: Callable[[], None], rounds: int) -> None:
    later = call if rounds == 1 else lambda: _at_the_end_of_the_backward(call, rounds - 1)
    Variable._execution_engine.queue_callback(later)  # as DDP and FSDP do
