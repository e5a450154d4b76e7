"""Cost of a method, measured by counting on a small model on the CPU: counts repeat exactly where times do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
from torch.utils._python_dispatch import TorchDispatchMode

from modbalance.method import Method
from modbalance.testing._case import EPOCHS, STEPS, Case, Training

_READS = {"aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.nonzero"}
_SIZE = 6  # samples of a batch


@attrs.frozen
class Cost:
    """What a method costs on the small model of `modbalance.testing`, with two modalities or as many as it needs.

    The counts of steps are means over the steps in which it acts, with its default options, or the short ones where
    the method declares them. The first epoch is left out: it holds what is looked up once.

    Attributes:
        encoder_passes: Forward passes of the encoders per step, in units of one pass of all encoders over the batch;
            1 is training without a method.
        encoder_backwards: Backward passes of the encoders per step, in the same unit.
        operations_added: Operations of torch per step, views left out, less those of training without a method.
        host_reads: Reads of a tensor on the host per step, which a GPU would have to wait for.
        epoch_passes: Forward passes of the encoders between two epochs, in the same unit.
        epoch_reads: Reads of a tensor on the host between two epochs.
    """

    encoder_passes: float
    encoder_backwards: float
    operations_added: float
    host_reads: float
    epoch_passes: float
    epoch_reads: float


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations but views, reads on the host, and samples at convolutions, one per encoder, there and back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.reads = self.samples = self.samples_back = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(func).rpartition(".")[0]
        self.operations += not func.is_view
        self.reads += name in _READS
        if name == "aten.convolution":
            self.samples += len(args[0])
        if name == "aten.convolution_backward":
            self.samples_back += len(args[0])
        return func(*args, **(kwargs or {}))


def measure(method: type[Method]) -> Cost:
    """Return the cost of a method; takes well below a second for most.

    Raises:
        Exception: Whatever its hooks raise on the small model.
    """
    case = Case(method)
    ours, epoch = _counts(case.training())
    bare, _ = _counts(case.bare())
    steps = (EPOCHS - 1) * STEPS
    passes = len(case.smallest()) * _SIZE
    return Cost(
        encoder_passes=ours.samples / steps / passes,
        encoder_backwards=ours.samples_back / steps / passes,
        operations_added=(ours.operations - bare.operations) / steps,
        host_reads=(ours.reads - bare.reads) / steps,
        epoch_passes=epoch.samples / (EPOCHS - 1) / passes,
        epoch_reads=epoch.reads / (EPOCHS - 1),
    )


def _counts(training: Training) -> tuple[_Counter, _Counter]:
    """Return what all steps but those of the first epoch do, and what happens between epochs after it."""
    steps, between = _Counter(), _Counter()
    data = training.data(size=_SIZE)
    for index, batch in enumerate(data):
        is_first = index < STEPS
        _counted(partial(training.step, batch), None if is_first else steps)
        if index % STEPS == STEPS - 1:
            seen = data[index + 1 - STEPS : index + 1]
            _counted(partial(training.end_epoch, seen), None if is_first else between)
    return steps, between


def _counted(work: Callable[[], object], counter: _Counter | None) -> None:
    if counter is None:
        work()
        return
    with counter:
        work()
