"""Parallel runs of a comparison, each in a process of its own: one that is killed or out of memory fails alone."""

from __future__ import annotations

import inspect
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from recipe_common.comparison.child import COMMAND, FAILURE, MESSAGE
from recipe_common.comparison.plan import RunPlan
from recipe_common.comparison.screen import Screen
from recipe_common.report.folder import LOG
from recipe_common.report.results import Failure, Outcome, Result, Run
from recipe_common.report.view import View
from recipe_common.settings.declaration import changed
from recipe_common.training.interrupt import INTERRUPTED, Interrupted, stop_on_signal
from recipe_common.training.run import Session, finished_result
from recipe_common.training.settings import as_json

_POLL = 0.1  # seconds


def run_in_processes(session: Session, plan: Sequence[RunPlan], screen: Screen) -> list[Outcome]:
    """Train the runs in ``--jobs`` processes at a time, on all CUDA devices in turn unless ``--device`` names one.

    Raises:
        Interrupted: If a signal to stop has arrived; all running trainings have then saved their state.
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
                _forward(pool.messages)
                pool.collect()
        finally:
            pool.kill()
    if stop:
        raise Interrupted
    return [pool.outcomes[each.run] for each in plan]


class _Pool:
    """Waiting runs, running child processes and outcomes of a comparison."""

    def __init__(self, session: Session, plan: Sequence[RunPlan], screen: Screen) -> None:
        self.session, self.screen = session, screen
        self.waiting = list(plan)
        self.children: list[Child] = []
        self.outcomes: dict[Run, Outcome] = {}
        self.messages: Messages = queue.Queue()
        self._devices = Devices(session)
        self.jobs = session.settings.comparison.jobs or 1

    def note_finished(self) -> None:
        """Read the results of runs that an earlier call has finished."""
        for each in list(self.waiting):
            result = finished_result(each.folder, self.session.settings.optimisation.epochs)
            if result is not None:
                self.session.print(f"{each.run.method}: {each.folder.path} is finished; nothing to train.")
                self.waiting.remove(each)
                self._end(each.run, result)

    def fill(self) -> None:
        """Start waiting runs until ``--jobs`` of them are running."""
        while self.waiting and len(self.children) < self.jobs:
            each = self.waiting.pop(0)
            view = self.screen.view(each.run)
            self.children.append(Child(self.session, each, self._devices.take(), self.messages, view))

    def collect(self) -> None:
        """Read the outcomes of the processes that have ended; one that was interrupted has none."""
        for child in [child for child in self.children if child.has_ended]:
            _forward(self.messages)
            self.children.remove(child)
            child.close()
            self._devices.give_back(child.device)
            if not child.is_interrupted:
                self._end(child.plan.run, child.outcome())

    def interrupt(self) -> None:
        """Send all processes the signal to save their state and stop."""
        for child in self.children:
            child.interrupt()

    def kill(self) -> None:
        """Kill all processes."""
        for child in self.children:
            child.kill()

    def _end(self, run: Run, outcome: Outcome) -> None:
        self.outcomes[run] = outcome
        self.screen.finished(run, outcome)


def _forward(messages: Messages) -> None:
    """Pass the messages of the children on to their views; wait up to 0.1 s for the first one."""
    with suppress(queue.Empty):
        child, message = messages.get(timeout=_POLL)
        while True:
            child.handle(message)
            child, message = messages.get_nowait()


class Devices:
    """Assigns to each run the device with the fewest runs."""

    def __init__(self, session: Session) -> None:
        named = session.settings.machine.device
        count = torch.cuda.device_count() if named in ("auto", "cuda") else 0
        self.in_use = {f"cuda:{index}": 0 for index in range(count)} or {named: 0}

    def take(self) -> str:
        """Return the device with the fewest runs, and count one more on it."""
        device = min(self.in_use, key=lambda name: self.in_use[name])
        self.in_use[device] += 1
        return device

    def give_back(self, device: str) -> None:
        """Count one run less on a device."""
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
        settings = changed(session.settings, seed=plan.run.seed, device=device, jobs=None)
        request = {"method": plan.run.method, "settings": as_json(settings)}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already; the reason is in its log
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, args=(messages,), daemon=True)
        self._reader.start()

    def _read(self, messages: Messages) -> None:
        assert self._process.stdout is not None
        with (self.plan.folder.path / LOG).open("a") as log:
            for line in self._process.stdout:
                if line.startswith(MESSAGE):
                    messages.put((self, json.loads(line.removeprefix(MESSAGE))))
                else:
                    log.write(line)

    def handle(self, message: dict[str, Any]) -> None:
        """Pass a message of the process on to the view of the run."""
        for _ in range(message.pop("steps")):
            self.view.step_done()
        event = message.pop("event", None)
        if event == FAILURE:
            self._reason = message["reason"]
        elif event is not None:
            getattr(self.view, event)(**message)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended and all of its messages are in the queue."""
        return self._process.poll() is not None and not self._reader.is_alive()

    def interrupt(self) -> None:
        """Send the process the signal to save its state and stop."""
        if not self.is_interrupted and self._process.poll() is None:
            self.is_interrupted = True
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill the process, with all processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Wait for the end of the process and close its streams."""
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def outcome(self) -> Outcome:
        """Return the result of the run, or the reason why there is none."""
        run = self.plan.run
        if self._process.returncode == 0:
            result = self.plan.folder.read_result()
            assert result is not None
            return Result(**result)
        return Failure(run.method, run.seed, self._reason or self._guess())

    def _guess(self) -> str:
        """Return a likely reason why the process ended without a message."""
        code, log = self._process.returncode, self.plan.folder.path / LOG
        if code < 0:
            return f"killed by signal {-code}, perhaps for lack of memory; see {log}"
        if code == INTERRUPTED:
            return "stopped by a signal; its state is saved, and --resume continues it"
        return f"ended with status {code}; see {log}"


Messages = queue.Queue[tuple[Child, dict[str, Any]]]
