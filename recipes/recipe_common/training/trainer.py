"""Training loop of one run: steps, evaluation after each epoch, checkpoints and continuation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from math import ceil, isfinite
from typing import Any

import torch

from recipe_common.errors import message
from recipe_common.report.events import EventLog
from recipe_common.report.folder import RunFolder
from recipe_common.report.view import View
from recipe_common.training.checkpoint import rng_state, save, set_rng_state
from recipe_common.training.interrupt import Interrupted, StopRequest
from recipe_common.training.job import Job
from recipe_common.training.loaders import batches_per_epoch, grouped, to_device
from recipe_common.training.sums import EpochSums
from recipe_common.training.work import Waiting

_OF_RANK = ("rng", "sums")
"""Parts of the state that differ between ranks."""


class RunFailed(Exception):
    """Training cannot continue because of its own numbers; other runs of a comparison are not affected."""


def check_loss(loss: float, name: str, where: str) -> None:
    """Check that training has not diverged.

    Raises:
        RunFailed: If the loss is not finite.
    """
    if not isfinite(loss):
        raise RunFailed(f"the {name} became {loss} {where}")


def reason(error: BaseException) -> str:
    """Return why a run failed, in one line."""
    lines = message(error).splitlines() or [type(error).__name__]
    return f"out of memory: {lines[0]}" if isinstance(error, MemoryError | torch.OutOfMemoryError) else lines[0]


class Trainer:
    """Trains one job; stops after any step on request, and continues from there bitwise.

    Args:
        job: Model, optimizer, data and evaluator.
        folder: Folder of checkpoints and metrics.
        view: View of the progress.
    """

    def __init__(self, job: Job, folder: RunFolder, view: View) -> None:
        self.job = job
        self.folder = folder
        self.view = view
        self.stop = StopRequest()
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.sums = EpochSums(job.precision.device, job.ranks)
        self.num_batches = batches_per_epoch(job.loaders.train, job.settings.data.limit_batches)
        self.split = "test" if job.settings.data.select == "test" else "val"
        self.num_steps: int = ceil(self.num_batches / job.settings.optimisation.accumulate)

    @property
    def step_in_epoch(self) -> int:
        """Optimizer steps done in this epoch."""
        offset: int = self.job.loaders.sampler.offset
        steps: int = ceil(offset / self.job.settings.optimisation.accumulate)
        return steps

    @property
    def step(self) -> int:
        """Optimizer steps done since the start of the run."""
        return self.epoch * self.num_steps + self.step_in_epoch

    def fit(self, stop: StopRequest) -> None:
        """Train to the last epoch, or until ``stop`` is true.

        Raises:
            Interrupted: If ``stop`` became true; ``last.pt`` is then up to date.
            RunFailed: If a loss is not finite, or the metric that selects the best epoch is finite in no epoch.
        """
        self.stop = stop
        self.events = EventLog(self.folder.events if self.job.ranks.is_first else None, self.step)
        self.view.start(
            self.job.method, self.job.settings.optimisation.epochs, self.num_steps, self.step_in_epoch, self.history
        )
        self.job.optimizer.begin(train=self.job.loaders.train_in_order, val=self.job.loaders.val_share)
        try:
            while self.epoch < self.job.settings.optimisation.epochs:
                self._train_epoch()
                self._end_epoch(self._evaluate())
        finally:
            self.view.stop()
            self.events.close()
        if self.best is None:
            raise RunFailed(f"the {self.split} {self.job.task.headline.title} is a number in no epoch")

    def _train_epoch(self) -> None:
        job = self.job
        job.model.train()
        job.optimizer.epoch = self.epoch
        remaining = self.num_batches - job.loaders.sampler.offset
        waiting = Waiting()
        steps = grouped(islice(job.loaders.train, remaining), job.settings.optimisation.accumulate)
        self.sums.start_clock()
        for batches in waiting.timed(steps):
            self._step(batches)
            for _ in batches:
                job.loaders.sampler.advance()
            self.sums.waiting += waiting.take()
            self.sums.encoded += job.counter.take()
            self._after_step()
        self.sums.stop_clock()

    def _step(self, batches: list[Any]) -> None:
        job = self.job
        job.optimizer.zero_grad()
        for number, batch in enumerate(batches, start=1):
            *inputs, target = to_device(batch, job.precision.device)
            with job.accumulating(is_last=number == len(batches)):
                with job.precision.autocast():
                    loss = job.criterion(job.forward(*inputs), target)
                    if job.penalty is not None:
                        loss = loss + job.penalty(job.model, target)
                job.scaler.scale(loss / len(batches)).backward()  # type: ignore[no-untyped-call]  # torch's
            self.sums.add_loss(loss, len(target))
        job.scaler.step(job.optimizer)
        job.scaler.update()
        job.schedule.after_step()

    def _after_step(self) -> None:
        run = self.job.settings.run
        step = self.step_in_epoch
        is_reading = step % run.log_every == 0 or step == self.num_steps
        self.view.step_done()
        if is_reading:
            metrics = self.job.optimizer.metrics()
            self.sums.add_metrics(metrics)
            loss = self.sums.mean_loss()
            check_loss(loss, "loss", f"in epoch {self.epoch + 1}, at or before step {step}")
            self.view.loss_read(loss)
            self.events.step(self.step, loss, metrics)
        # Ranks agree on it by a collective, which would be slow in every step.
        must_stop = (is_reading or self.job.ranks.is_alone) and self.job.ranks.any(bool(self.stop))
        if must_stop or (run.save_every > 0 and step % run.save_every == 0):
            self.sums.stop_clock()
            self.save()
            self.sums.start_clock()
        if must_stop:
            raise Interrupted

    def _raise_if_stopped(self) -> None:
        if self.stop:
            raise Interrupted

    def _evaluate(self) -> dict[str, float]:
        job = self.job
        row = {
            "epoch": self.epoch + 1,
            "lr": job.optimizer.param_groups[0]["lr"],
            "train_loss": self.sums.mean_loss(),
            "seconds": self.sums.seconds,
            "steps": self.num_steps,
            "waiting": self.sums.waiting,
        }
        loader = job.loaders.test if self.split == "test" else job.loaders.val

        def evaluated() -> dict[str, float]:
            scores = job.evaluator(loader, job.settings.data.limit_batches, self._raise_if_stopped)
            return row | scores.as_row(self.split) | self.sums.mean_coefficients()

        try:
            with job.counter.paused():
                row = job.ranks.on_first(evaluated)
        except Interrupted:
            self.save()
            raise
        # All ranks check it, so that all of them continue with the next run.
        check_loss(row[f"{self.split}_loss"], f"{self.split} loss", f"in epoch {self.epoch + 1}")
        return row

    def _end_epoch(self, row: dict[str, float]) -> None:
        job = self.job
        self.history.append(row)
        self._keep_if_best(row)
        job.schedule.after_epoch(row[f"{self.split}_{job.task.headline.key}"])
        job.ranks.share_buffers(job.model)
        job.optimizer.end_epoch(train=job.loaders.train_in_order, val=job.loaders.val_share)
        # The work of methods between epochs counts, too.
        self.sums.encoded += job.counter.take()
        row["encoder_passes"] = self.sums.mean_passes(job.counter.num_encoders)
        self._write_metrics()
        self.events.epoch(self.step, row)
        self.epoch += 1
        job.loaders.sampler.set_epoch(self.epoch)
        self.sums = EpochSums(job.precision.device, job.ranks)
        self.save()
        self.view.epoch_done(row)

    def _keep_if_best(self, row: dict[str, float]) -> None:
        rank = self.job.task.rank
        # A metric may be undefined where the loss is finite, and nothing ranks above nan.
        if not isfinite(row[f"{self.split}_{self.job.task.headline.key}"]):
            return
        if self.best is None or rank(row, self.split) > rank(self.best, self.split):
            self.best = row
            if self.job.ranks.is_first:
                save(self._weights(row), self.folder.best)

    def _write_metrics(self) -> None:
        if self.job.ranks.is_first:
            self.folder.write_metrics(self.history)

    def _weights(self, row: Mapping[str, float]) -> dict[str, Any]:
        return {
            "recipe": self.folder.recipe,
            "settings": self.folder.settings,
            "classes": list(self.job.classes),
            "row": dict(row),
            "model": self.job.model.state_dict(),
        }

    def save(self) -> None:
        """Write ``last.pt``, from which training continues. All ranks call it and return when the file is written."""
        job = self.job
        state: dict[str, Any] = {
            "optimizer": job.optimizer.state_dict(),
            "schedule": job.schedule.state_dict(),
            "scaler": job.scaler.state_dict(),
            "sampler": job.loaders.sampler.state_dict(),
            "sums": self.sums.state_dict(),
            "rng": rng_state(self._own_device),
            "history": self.history,
            "best": self.best,
        }
        if not job.ranks.is_alone:
            state["ranks"] = job.ranks.gather({name: state[name] for name in _OF_RANK})
        job.ranks.on_first(lambda: self._write_state(state))

    def _write_state(self, state: Mapping[str, Any]) -> None:
        # A run that is killed continues behind these events.
        self.events.flush()
        save({**self._weights(self.best or {}), **state}, self.folder.last)

    @property
    def _own_device(self) -> torch.device | None:
        """Device of the random numbers of this rank; None, for all devices, if there is one process."""
        return None if self.job.ranks.is_alone else self.job.precision.device

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `save` wrote."""
        job = self.job
        job.model.load_state_dict(state["model"])
        job.optimizer.load_state_dict(state["optimizer"])
        job.schedule.load_state_dict(state["schedule"])
        job.scaler.load_state_dict(state["scaler"])
        job.loaders.sampler.load_state_dict(state["sampler"])
        of_rank = state if job.ranks.is_alone else state["ranks"][job.ranks.rank]
        self.sums.load_state_dict(of_rank["sums"])
        self.history = list(state["history"])
        self.best = state["best"]
        self.epoch = job.loaders.sampler.epoch
        self._write_metrics()
        set_rng_state(of_rank["rng"], self._own_device)
