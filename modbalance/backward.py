"""What must not happen before the backward of a pass in eval mode is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from modbalance.errors import ObservationError

_RECOMPUTED = (
    "A pass in eval mode should not be recomputed in the backward, where the model is in training mode again. Found "
    "activation checkpointing, or other hooks on saved tensors, in the model: switch it off, or let no gradient "
    "through such passes (`masked_pass_grad=False`)."
)


@contextmanager
def without_recomputation() -> Iterator[None]:
    """Raise an ObservationError if the body asks for activation checkpointing, which works by hooks on saved tensors.

    Where such hooks are on already, around the body, the body is not watched.
    """
    with ExitStack() as stack:
        with suppress(RuntimeError):
            stack.enter_context(torch.autograd.graph.disable_saved_tensors_hooks(_RECOMPUTED))
        try:
            yield
        except RuntimeError as error:
            if str(error) != _RECOMPUTED:
                raise
            raise ObservationError(_RECOMPUTED) from None


def guard_buffers(output: Tensor, model: nn.Module) -> None:
    """Raise an ObservationError in the backward of ``output`` if a buffer changed since now, or changes meanwhile.

    Batch norm in eval mode reads its running statistics again in the backward. Autograd does not notice that a forward
    in training mode has changed them, and the gradients come out wrong; the batch counter beside them does show it.
    """
    buffers = dict(model.named_buffers())
    versions = {name: buffer._version for name, buffer in buffers.items()}

    def check() -> None:
        for name, buffer in buffers.items():
            if buffer._version != versions[name]:
                raise ObservationError(
                    "The backward should follow the criterion call, before the model runs in training mode again. "
                    f"Found that the buffer {name!r} changed since: take the backward of each batch before the next "
                    "forward, and do not checkpoint the activations of a model with batch norm."
                )

    def on_gradient(gradient: Tensor) -> None:
        check()
        Variable._execution_engine.queue_callback(check)

    if buffers:
        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]
