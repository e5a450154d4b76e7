"""Notices gradients that were changed in place between the backward and the modulation, by the count of their changes.

A clip of a framework is such a change: it bounds the norm of gradients that are then modulated, and not of those that
the inner optimizer sees. The counter of a tensor says so without a look at its values; an unscaling by GradScaler
leaves it as it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle, unserializable_hook

_ROUNDS = 3
"""Rounds of callbacks at the end of a backward before the counter is read: DDP writes its means in the first two."""


class BackwardEnd:
    """Calls a method at the end of each backward that reaches one of some parameters.

    Args:
        parameters: The parameters.
        call: The bound method, whose object is not kept alive.

    Attributes:
        remove: Takes the hooks off the parameters, which also happens when this object goes.
    """

    def __init__(self, parameters: Iterable[Tensor], call: Callable[[], None]) -> None:
        alive, waiting = weakref.WeakMethod(call), [False]

        def over() -> None:
            waiting[0] = False
            if (found := alive()) is not None:
                found()

        @unserializable_hook  # type: ignore[untyped-decorator]
        def reached(_: Tensor) -> None:
            # The engine of compiled autograd has no such callbacks; its gradients are not watched.
            if not waiting[0] and not torch.compiler.is_compiling() and alive() is not None:
                waiting[0] = True
                _at_the_end_of_the_backward(over, _ROUNDS)

        handles = [each.register_hook(reached) for each in parameters]  # type: ignore[no-untyped-call]
        self.remove = weakref.finalize(self, _remove, handles)


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


class GradientWatch:
    """Watches the gradient of one parameter: a clip changes all of them.

    Attributes:
        parameter: The parameter.
        remove: Takes the hook off it, which also happens when this object goes.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self._noted: tuple[int, int] | None = None
        self._end = BackwardEnd([parameter], self._note)
        self.remove = self._end.remove

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
