"""TensorBoard event files of a run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from recipe_common.files import room_for


class EventLog:
    """Writes scalars for TensorBoard, all of them over optimizer steps since the start of the run.

    Args:
        path: Folder of the event files; None to write nothing.
        step: Steps done before. TensorBoard drops later events of an interrupted run; at 0 all events are deleted.

    Raises:
        RecipeError: If the disk is full. All methods raise it, too.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self._writer = None
        if path is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        with room_for(path):
            if step == 0 and path.exists():
                shutil.rmtree(path)
            # Events at the step of the purge itself are dropped, too.
            self._writer = SummaryWriter(str(path), purge_step=step + 1 if step > 0 else None)

    def step(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        """Log the running training loss and the metrics of the optimizer."""
        self._write(step, {"train/running_loss": loss, **metrics})

    def epoch(self, step: int, row: Mapping[str, float]) -> None:
        """Log the row of an epoch."""
        self._write(step, {f"epoch/{name}": value for name, value in row.items()})

    def flush(self) -> None:
        """Write all events to disk."""
        if self._writer is not None:
            with room_for(Path(self._writer.log_dir)):
                self._writer.flush()

    def close(self) -> None:
        """Write all events to disk and close the file."""
        if self._writer is not None:
            with room_for(Path(self._writer.log_dir)):
                self._writer.close()

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        with room_for(Path(self._writer.log_dir)):
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
