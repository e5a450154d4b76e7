"""Ctrl-C and SIGTERM as a request to stop: the step is finished and a checkpoint written first."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit status of a process that stopped on request."""


class Interrupted(Exception):
    """Training stopped on request; the state from which it continues is on disk."""


_SAME_REQUEST = 1.0
"""Seconds in which further signals are the same request: one comes from a scheduler, another from the parent."""


class StopRequest:
    """Whether a signal to stop has arrived; a second one stops the process at once."""

    def __init__(self) -> None:
        self.is_set = False
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.is_set

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: set the request, or raise ``KeyboardInterrupt`` if it was set more than a second ago."""
        if not self.is_set:
            self.is_set, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > _SAME_REQUEST:
            raise KeyboardInterrupt


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a `StopRequest` while the context is open."""
    request = StopRequest()
    previous = {number: signal.signal(number, request.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_signals_to_parent(worker_id: int) -> None:
    """Make a data worker ignore Ctrl-C, which its parent handles, and end on SIGTERM, which its parent sends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
