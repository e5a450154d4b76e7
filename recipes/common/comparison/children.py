"""Several runs at a time, each in a process of its own: one that is killed or runs out of memory fails alone."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

import torch
from rich.console import Console

from common.comparison.locks import folder_lock
from common.comparison.plan import RunPlan, make_plan
from common.comparison.screen import Screen
from common.recipe import Recipe
from common.report.folder import LOG
from common.report.results import Failure, Outcome, Result, Run
from common.report.view import Row, View
from common.training.interrupt import INTERRUPTED, Interrupted, stop_on_signal
from common.training.run import Session, finished_result, open_session, train
from common.training.trainer import reason

COMMAND = "run-one"
"""Sub-command that trains one run of a comparison; its settings come through standard input."""
FAILED = 1
FAILURE = "failure"
_MESSAGE = "\x1e"
"""What a message begins with (RFC 7464); other lines of a process are what its recipe or a library printed."""
_PERIOD = 0.2  # seconds between two messages about steps
_POLL = 0.1  # seconds


def run_in_processes(session: Session, plan: Sequence[RunPlan], screen: Screen) -> list[Outcome]:
    """Train the runs in ``--jobs`` processes at a time, on all CUDA devices in turn if no other one is named.

    Raises:
        Interrupted: If somebody asked to stop; all running trainings have then saved their state.
    """
    pool = _Pool(session, plan, screen)
    with stop_on_signal() as stop, screen:
        try:
            pool.note_finished()
            while pool.children or (pool.waiting and not stop):
                if stop:
                    pool.interrupt()
                else:
                    pool.fill()
                _hear(pool.messages)
                pool.collect()
        finally:
            pool.kill()
    if stop:
        raise Interrupted
    return [pool.outcomes[each.run] for each in plan]


class _Pool:
    """The runs that wait, those that go on, and those that have ended."""

    def __init__(self, session: Session, plan: Sequence[RunPlan], screen: Screen) -> None:
        self.session, self.screen = session, screen
        self.waiting = list(plan)
        self.children: list[Child] = []
        self.outcomes: dict[Run, Outcome] = {}
        self.messages: Messages = queue.Queue()
        self._devices = Devices(session)

    def note_finished(self) -> None:
        """Take the results of runs that an earlier call has finished."""
        for each in list(self.waiting):
            result = finished_result(each.folder, self.session.args.epochs)
            if result is not None:
                self.session.say(f"{each.run.method}: {each.folder.path} is finished; nothing to train.")
                self.waiting.remove(each)
                self._end(each.run, result)

    def fill(self) -> None:
        """Start as many runs as may go at a time."""
        while self.waiting and len(self.children) < self.session.args.jobs:
            each = self.waiting.pop(0)
            view = self.screen.view(each.run)
            self.children.append(Child(self.session, each, self._devices.take(), self.messages, view))

    def collect(self) -> None:
        """Take the outcomes of the processes that have ended; one that stopped on request has none."""
        for child in [child for child in self.children if child.has_ended]:
            _hear(self.messages)
            self.children.remove(child)
            child.close()
            self._devices.give_back(child.device)
            if not child.is_interrupted:
                self._end(child.plan.run, child.outcome())

    def interrupt(self) -> None:
        """Ask all processes to save their state and stop."""
        for child in self.children:
            child.interrupt()

    def kill(self) -> None:
        """End all processes at once."""
        for child in self.children:
            child.kill()

    def _end(self, run: Run, outcome: Outcome) -> None:
        self.outcomes[run] = outcome
        self.screen.finished(run, outcome)


def _hear(messages: Messages) -> None:
    """Hand what the children said to their views; wait a moment for something to be said."""
    with suppress(queue.Empty):
        child, message = messages.get(timeout=_POLL)
        while True:
            child.tell(message)
            child, message = messages.get_nowait()


class Devices:
    """Hands out the device on which the fewest runs are."""

    def __init__(self, session: Session) -> None:
        named = session.args.device
        count = torch.cuda.device_count() if named in ("auto", "cuda") else 0
        self.in_use = {f"cuda:{index}": 0 for index in range(count)} or {named: 0}

    def take(self) -> str:
        """Return a device."""
        device = min(self.in_use, key=lambda name: self.in_use[name])
        self.in_use[device] += 1
        return device

    def give_back(self, device: str) -> None:
        """A run on the device has ended."""
        self.in_use[device] -= 1


class Child:
    """One run in a process of its own; it ends when its parent does."""

    def __init__(
        self,
        session: Session,
        plan: RunPlan,
        device: str,
        messages: Messages,
        view: View,
    ) -> None:
        self.plan, self.device, self.view = plan, device, view
        self.is_interrupted = False
        self._reason: str | None = None
        plan.folder.path.mkdir(parents=True, exist_ok=True)
        script = inspect.getfile(session.recipe.load)
        # Its own session, so that Ctrl-C reaches it once: from here.
        with (plan.folder.path / LOG).open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, script, *session.recipe.subcommand, COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        own = {"seed": plan.run.seed, "device": device, "child": plan.run.method, "jobs": None}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once; its log says why
            self._process.stdin.write(json.dumps({**vars(session.args), **own}) + "\n")
            self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, args=(messages,), daemon=True)
        self._reader.start()

    def _read(self, messages: Messages) -> None:
        assert self._process.stdout is not None
        with (self.plan.folder.path / LOG).open("a") as log:
            for line in self._process.stdout:
                if line.startswith(_MESSAGE):
                    messages.put((self, json.loads(line.removeprefix(_MESSAGE))))
                else:
                    log.write(line)

    def tell(self, message: dict[str, Any]) -> None:
        """Hand what it said to its view."""
        for _ in range(message.pop("steps")):
            self.view.step_done()
        event = message.pop("event", None)
        if event == FAILURE:
            self._reason = message["reason"]
        elif event is not None:
            getattr(self.view, event)(**message)

    @property
    def has_ended(self) -> bool:
        """Whether the process is over and all that it said is in the queue."""
        return self._process.poll() is not None and not self._reader.is_alive()

    def interrupt(self) -> None:
        """Ask it to save its state and stop."""
        if not self.is_interrupted and self._process.poll() is None:
            self.is_interrupted = True
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, with all processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Wait for its end and close what connects to it."""
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def outcome(self) -> Outcome:
        """Return the result that it left, or why there is none."""
        run = self.plan.run
        if self._process.returncode == 0:
            result = self.plan.folder.read_result()
            assert result is not None
            return Result(**result)
        return Failure(run.method, run.seed, self._reason or self._guess())

    def _guess(self) -> str:
        """Return why it may have ended without a word."""
        code, log = self._process.returncode, self.plan.folder.path / LOG
        if code < 0:
            return f"killed by signal {-code}, perhaps for lack of memory; see {log}"
        if code == INTERRUPTED:
            return "asked to stop by a signal; its state is saved, and --resume goes on"
        return f"ended with status {code}; see {log}"


Messages = queue.Queue[tuple[Child, dict[str, Any]]]


class Messenger:
    """A view that tells the parent, as lines of JSON."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._steps = 0
        self._sent = time.perf_counter()

    def start(self, method: str, epochs: int, num_steps: int, step: int, history: Sequence[Row]) -> None:
        """Tell it."""
        self._send("start", method=method, epochs=epochs, num_steps=num_steps, step=step, history=list(history))

    def step_done(self) -> None:
        """Tell it once in a while."""
        self._steps += 1
        if time.perf_counter() - self._sent > _PERIOD:
            self._send(None)

    def look(self, loss: float) -> None:
        """Tell it."""
        self._send("look", loss=loss)

    def epoch_done(self, row: Row) -> None:
        """Tell it."""
        self._send("epoch_done", row=dict(row))

    def stop(self) -> None:
        """Tell it."""
        self._send("stop")

    def failed(self, reason: str) -> None:
        """Tell why there is no result."""
        self._send(FAILURE, reason=reason)

    def _send(self, event: str | None, **content: Any) -> None:
        message = {"steps": self._steps, **({} if event is None else {"event": event}), **content}
        self._steps, self._sent = 0, time.perf_counter()
        print(f"{_MESSAGE}{json.dumps(message)}", file=self._stream, flush=True)


def run_one(recipe: Recipe) -> int:
    """Train the run whose settings come through standard input, and tell the parent through standard output."""
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    messenger = Messenger(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # whatever else is printed goes to the log
    args = argparse.Namespace(**settings)
    try:
        session = open_session(recipe, args, Console())
        each = next(each for each in make_plan(session) if each.run == Run(args.child, args.seed))
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
    """Wait for the end of standard input, which comes when the parent is gone, and end this process."""
    # Not by `sys.stdin`, whose lock a data worker that is forked meanwhile would wait for for ever.
    while os.read(0, 1):
        pass
    os._exit(1)
