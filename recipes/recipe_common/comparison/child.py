"""Child process of a comparison: trains one run and sends its progress to the parent process."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import IO, Any

import attrs
from rich.console import Console

from recipe_common.comparison.locks import folder_lock
from recipe_common.comparison.plan import make_plan
from recipe_common.recipe import Recipe
from recipe_common.report.results import Run
from recipe_common.report.view import Row
from recipe_common.training.interrupt import INTERRUPTED, Interrupted
from recipe_common.training.run import open_session, train
from recipe_common.training.settings import from_json
from recipe_common.training.trainer import reason

COMMAND = "run-one"
"""Sub-command that trains one run of a comparison; its settings come through standard input."""


FAILED = 1
FAILURE = "failure"
MESSAGE = "\x1e"
"""First character of a message (RFC 7464); other lines of a process are output of its recipe or of a library."""
_PERIOD = 0.2  # seconds between two messages about steps


class Messenger:
    """View that sends the progress of a run to the parent process, as lines of JSON."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._steps = 0
        self._sent = time.perf_counter()

    def start(self, method: str, epochs: int, num_steps: int, step: int, history: Sequence[Row]) -> None:
        """Send the size of the run and the epochs that are done."""
        self._send("start", method=method, epochs=epochs, num_steps=num_steps, step=step, history=list(history))

    def step_done(self) -> None:
        """Count the step; the count is sent at most every 0.2 s."""
        self._steps += 1
        if time.perf_counter() - self._sent > _PERIOD:
            self._send(None)

    def loss_read(self, loss: float) -> None:
        """Send the mean loss of the epoch so far."""
        self._send("loss_read", loss=loss)

    def epoch_done(self, row: Row) -> None:
        """Send the row of an epoch."""
        self._send("epoch_done", row=dict(row))

    def stop(self) -> None:
        """Send the end of the training."""
        self._send("stop")

    def failed(self, reason: str) -> None:
        """Send the reason why there is no result."""
        self._send(FAILURE, reason=reason)

    def _send(self, event: str | None, **content: Any) -> None:
        message = {"steps": self._steps, **({} if event is None else {"event": event}), **content}
        self._steps, self._sent = 0, time.perf_counter()
        print(f"{MESSAGE}{json.dumps(message)}", file=self._stream, flush=True)


def run_one(recipe: Recipe) -> int:
    """Train the run whose settings come through standard input; its progress goes to standard output.

    Returns:
        Exit code: 0, 1 if the run failed, 130 after an interruption.
    """
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    messenger = Messenger(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # other output goes to the log
    try:
        settings = from_json(recipe, request["settings"])
        session = attrs.evolve(open_session(recipe, settings, Console()), is_child=True)
        run = Run(request["method"], settings.optimisation.seed)
        each = next(each for each in make_plan(session) if each.run == run)
        with folder_lock(each.folder.path):
            train(session, each.run.method, each.options, each.folder, messenger)
    except Interrupted:
        return INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        messenger.failed(reason(error))
        return FAILED
    return 0


def _end_with_parent() -> None:
    """End this process when standard input ends, as it does when the parent has ended."""
    # Not by `sys.stdin`: a data worker that is forked meanwhile would wait for its lock for ever.
    while os.read(0, 1):
        pass
    os._exit(1)
