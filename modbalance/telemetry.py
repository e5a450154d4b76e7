"""Logged values where people look: TensorBoard, CSV, Weights & Biases, MLflow, through their own clients.

`log_to(opt, "tensorboard", folder="runs/a")` is all: coefficients, scores and losses that the methods log, and the
training loss, from then on. A record is taken every ``every`` steps, in copies on the device; ``keep`` records are
moved to the host together, so that a step reads nothing and one of ``every * keep`` steps waits for the device.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from modbalance import gradients, sharding
from modbalance._reporting import Snapshot, moved
from modbalance.errors import ConfigError, suggest
from modbalance.optimizer import BalancedOptimizer

__all__ = ["CLIENTS", "Client", "Csv", "Logger", "MLflow", "TensorBoard", "WandB", "log_to"]


class Client(Protocol):
    """Where records go; any object with these methods can be given to `Logger`."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one optimizer step; steps come in order."""

    def close(self) -> None:
        """Write what is left."""


class Csv:
    """A file with a line ``step,name,value`` per value, which every version of the columns fits.

    Args:
        folder: Folder of the file ``telemetry.csv``, which is made. Records of a file that exists are kept.
    """

    def __init__(self, folder: Path | str) -> None:
        path = _made(folder) / "telemetry.csv"
        is_new = not path.exists() or not path.stat().st_size
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        if is_new:
            self._writer.writerow(["step", "name", "value"])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line per value."""
        self._writer.writerows([step, name, repr(value)] for name, value in values.items())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files of TensorBoard, by `torch.utils.tensorboard.SummaryWriter`.

    Args:
        folder: Folder of the event files.
        arguments: Further arguments of SummaryWriter, such as ``purge_step`` after a resumption.
    """

    def __init__(self, folder: Path | str, **arguments: Any) -> None:
        _required("tensorboard")
        self._writer: Any = import_module("torch.utils.tensorboard").SummaryWriter(str(_made(folder)), **arguments)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases; offline by ``mode="offline"`` or ``WANDB_MODE=offline``.

    Values are drawn over ``modbalance_step``, so that what else is logged to the run keeps its own steps.

    Args:
        folder: Folder for its files.
        run: A run that exists, which stays open; ``None``: `wandb.init` begins one, which is finished by `close`.
        arguments: Arguments of `wandb.init`.
    """

    def __init__(self, folder: Path | str | None = None, *, run: Any = None, **arguments: Any) -> None:
        place = {} if folder is None else {"dir": str(_made(folder))}
        self._is_own = run is None
        self._run = _required("wandb").init(**(place | arguments)) if run is None else run
        self._known: set[str] = set()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values together."""
        for name in values.keys() - self._known:
            self._run.define_metric(name, step_metric="modbalance_step")
        self._known |= values.keys()
        self._run.log({**values, "modbalance_step": step})

    def close(self) -> None:
        """Finish the run, if it began here."""
        if self._is_own:
            self._run.finish()


class MLflow:
    """A run of MLflow.

    Args:
        folder: Folder of a local store, the SQLite file ``mlflow.db``; not with ``tracking_uri``.
        tracking_uri: Address of a server or store; ``None`` without a folder: that of the environment.
        experiment: Name of the experiment, which is made where it does not exist.
        run_id: A run that exists, which stays open; ``None``: a new one, which is ended by `close`.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        tracking_uri: str | None = None,
        experiment: str = "modbalance",
        run_id: str | None = None,
    ) -> None:
        if folder is not None and tracking_uri is not None:
            raise ConfigError("MLflow should be given a folder or a `tracking_uri`. Found both: leave one out.")
        if folder is not None:
            tracking_uri = f"sqlite:///{(_made(folder) / 'mlflow.db').resolve()}"
        self._metric = _required("mlflow").entities.Metric
        self._client: Any = import_module("mlflow").MlflowClient(tracking_uri)
        self._is_own = run_id is None
        self.run_id = run_id or self._new_run(experiment)

    def _new_run(self, experiment: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        run_id: str = self._client.create_run(number).info.run_id
        return run_id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values in one request per thousand, the most that a server takes."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def close(self) -> None:
        """End the run, if it began here."""
        if self._is_own:
            self._client.set_terminated(self.run_id)


CLIENTS = {"csv": Csv, "tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""The clients of `log_to`, by name."""


class Logger:
    """Takes records of an optimizer and hands them to a client; a context manager that closes at its end.

    A record has what `opt.metrics()` would give after the step; ``loss/total``, the mean of the losses that came from
    the criterion for the step, further terms of methods included; and, if wanted, gradient norms.

    Args:
        optimizer: Its steps are counted; skipped steps of a GradScaler are none.
        client: Where records go.
        every: Steps from one record to the next, >= 1.
        keep: Records that are kept on the device and then moved together, >= 1.
        gradient_norms: Whether records have the joint L2 norm of the gradients of each encoder, computed on the
            device in the steps of records alone: ``gradient_norm/raw/<modality>`` as `step()` finds them, and
            ``gradient_norm/used/<modality>`` as the inner optimizer got them, modulated and clipped. After an
            `opt.modulate()` by hand both are modulated.
        step: Steps that were taken before, as after a resumption.

    Raises:
        ConfigError: A number is out of its range; at a step: `gradient_norms` with sharded gradients.
    """

    def __init__(
        self,
        optimizer: BalancedOptimizer,
        client: Client,
        *,
        every: int = 10,
        keep: int = 10,
        gradient_norms: bool = False,
        step: int = 0,
    ) -> None:
        for name, value, low in (("every", every, 1), ("keep", keep, 1), ("step", step, 0)):
            if not isinstance(value, int) or value < low:
                raise ConfigError(f"Parameter `{name}` should be an integer >= {low}. Found `{name} = {value!r}`.")
        self._lifecycle = optimizer._lifecycle
        if self._lifecycle.on_loss is not None:
            raise ConfigError(
                "An optimizer should have one Logger. Found a second one: close the first, or write a client that "
                "hands records on to several."
            )
        self.client, self.every, self.keep, self.step = client, every, keep, step
        self._norms = gradient_norms
        self._records: list[tuple[int, Snapshot]] = []
        self._raw: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        self._losses = 0
        self._lifecycle.on_loss = self._add_loss
        self._handles = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def flush(self) -> None:
        """Move the records that are kept to the host, and hand them to the client."""
        records, self._records = self._records, []
        for (step, _), values in zip(records, moved([each for _, each in records]), strict=True):
            self._lifecycle.training.telemetry.warn_of(values)
            self.client.write(step, values)

    def close(self) -> None:
        """Flush, close the client, and leave the optimizer alone."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles, self._lifecycle.on_loss = [], None
        self.flush()
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add_loss(self, loss: Tensor) -> None:
        mean = loss.mean()
        self._loss = mean if self._loss is None else self._loss + mean
        self._losses += 1

    def _before(self, *_: object) -> None:
        if self._norms and (self.step + 1) % self.every == 0:
            self._raw = self._gradient_norms("raw")

    def _after(self, *_: object) -> None:
        self.step += 1
        loss, count, self._loss, self._losses = self._loss, self._losses, None, 0
        if self.step % self.every:
            return
        values: dict[str, Tensor | float] = {} if loss is None else {"loss/total": loss / count}
        if self._norms:
            values |= self._raw | self._gradient_norms("used")
        self._records.append((self.step, self._lifecycle.training.telemetry.snapshot(values)))
        if len(self._records) >= self.keep:
            self.flush()

    @torch.no_grad()
    def _gradient_norms(self, of: str) -> dict[str, Tensor]:
        norms = {}
        for modality in self._lifecycle.modalities:
            listed = [p for _, p in self._lifecycle.training.structure.listed(modality) if p.grad is not None]
            if any(map(sharding.is_sharded, listed)):
                raise ConfigError(
                    "`gradient_norms` should be False where parameters are sharded: the norm needs all ranks, and a "
                    "Logger may live on one."
                )
            if listed:
                norms[f"gradient_norm/{of}/{modality}"] = gradients.norm(listed)
        return norms


def log_to(
    optimizer: BalancedOptimizer,
    client: str | Client,
    folder: Path | str | None = None,
    *,
    every: int = 10,
    keep: int = 10,
    gradient_norms: bool = False,
    step: int = 0,
    **arguments: Any,
) -> Logger:
    """Log what an optimizer's methods log, from now on; returns the logger, whose `close()` writes the last records.

    Args:
        optimizer: The optimizer.
        client: ``"csv"``, ``"tensorboard"``, ``"wandb"``, ``"mlflow"``, or a `Client`.
        folder: Where its files go; needed for the first two.
        every: See `Logger`, as ``keep``, ``gradient_norms`` and ``step``.
        keep: See `Logger`.
        gradient_norms: See `Logger`.
        step: See `Logger`.
        arguments: Further arguments of the client, such as ``project=`` of Weights & Biases.

    Raises:
        ConfigError: The client is unknown or not installed, or an argument does not fit.
    """
    if isinstance(client, str):
        if client not in CLIENTS:
            raise ConfigError(f"Parameter `client` names no client. {suggest(client, CLIENTS)} Found {client!r}.")
        if folder is None and client in ("csv", "tensorboard"):
            raise ConfigError(f"Client {client!r} should be given a folder. Found none: pass `folder=`.")
        make: Any = CLIENTS[client]
        client = make(folder, **arguments)
    elif folder is not None or arguments:
        raise ConfigError("`folder=` and arguments of a client go with its name. Found them beside a client object.")
    return Logger(optimizer, client, every=every, keep=keep, gradient_norms=gradient_norms, step=step)  # type: ignore[arg-type]


def _made(folder: Path | str) -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _required(library: str) -> Any:
    try:
        return import_module(library)
    except ImportError as error:
        raise ConfigError(
            f"This client should find the library {library}. Found that it cannot be imported ({error}): "
            f"`pip install 'modbalance[{library}]'`."
        ) from error
