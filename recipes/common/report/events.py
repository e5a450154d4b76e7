"""TensorBoard events of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class EventLog:
    """Writes scalars for TensorBoard. One axis for all of them: optimizer steps since the start of the run.

    Args:
        path: Folder of the event files; None to write nothing.
        step: Step to begin with; what an interrupted run had written beyond it is dropped by TensorBoard.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self._writer = None
        if path is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(path), purge_step=step if step > 0 else None)

    def step(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        """Log a look at the running training loss and at the optimizer's metrics."""
        self._write(step, {"train/running_loss": loss, **metrics})

    def epoch(self, step: int, row: Mapping[str, float]) -> None:
        """Log the row of an epoch."""
        self._write(step, {f"epoch/{name}": value for name, value in row.items()})

    def close(self) -> None:
        """Write everything to disk."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
