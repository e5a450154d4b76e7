"""Notices gradients that were changed in place between the backward and the modulation, by the count of their changes.

A clip of a framework is such a change: it bounds the norm of gradients that are then modulated, and not of those that
the inner optimizer sees. The counter of a tensor says so without a look at its values; an unscaling by GradScaler
leaves it as it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import unserializable_hook

_ROUNDS = 3
"""Rounds of callbacks at the end of a backward before the counter is read: DDP writes its means in the first two."""


class GradientWatch:
    """Watches the gradient of one parameter: a clip changes all of them.

    Attributes:
        parameter: The parameter.
        remove: Takes the hook off it, which also happens when this object goes.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self._noted: tuple[int, int] | None = None
        watch = weakref.ref(self)

        @unserializable_hook  # type: ignore[untyped-decorator]
        def reached(_: Tensor) -> None:
            # The engine of compiled autograd has no such callbacks; its gradients are not watched.
            if not torch.compiler.is_compiling() and (alive := watch()) is not None:
                _at_the_end_of_the_backward(alive._note, _ROUNDS)

        handle = parameter.register_hook(reached)  # type: ignore[no-untyped-call]
        self.remove = weakref.finalize(self, handle.remove)

    def was_changed(self) -> bool:
        """Return whether the gradient that the last backward left was changed in place since; asked once a step."""
        noted, self._noted = self._noted, None
        now = self._state()
        return noted is not None and now is not None and noted[0] == now[0] and noted[1] != now[1]

    def _note(self) -> None:
        self._noted = self._state()

    def _state(self) -> tuple[int, int] | None:
        """Return identity and version of the gradient; not itself, which would keep its memory."""
        gradient = self.parameter.grad
        return None if gradient is None else (id(gradient), gradient._version)


def _at_the_end_of_the_backward(call: Callable[[], None], rounds: int) -> None:
    later = call if rounds == 1 else lambda: _at_the_end_of_the_backward(call, rounds - 1)
    Variable._execution_engine.queue_callback(later)  # as DDP and FSDP do
