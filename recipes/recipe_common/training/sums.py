"""Running sums of a training epoch: loss on the device, coefficients, seconds and encoded samples."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from recipe_common.training.ranks import ALONE, Ranks

_COEFFICIENT = "/coefficient/"


class EpochSums:
    """Running sums of one training epoch on this rank; checkpoints have them.

    Attributes:
        seconds: Seconds of training steps, with the loading of their data.
        waiting: Part of these seconds spent waiting for data.
        encoded: Samples that went through an encoder.
    """

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.samples = 0
        self.coefficients: dict[str, float] = {}
        self.readings = 0
        self.seconds = 0.0
        self.waiting = 0.0
        self.encoded = 0
        self._started = 0.0

    def start_clock(self) -> None:
        """Start the clock of the training steps."""
        self._started = time.perf_counter()

    def stop_clock(self) -> None:
        """Stop the clock of the training steps and add its seconds."""
        self.loss.item()  # waits for the device to finish its steps
        self.seconds += time.perf_counter() - self._started

    def add_loss(self, loss: Tensor, samples: int) -> None:
        """Add the mean loss of a batch, without a read from the device."""
        self.loss += loss.detach() * samples
        self.samples += samples

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add one reading of the coefficients of the optimizer."""
        self.readings += 1
        for key, value in metrics.items():
            if _COEFFICIENT in key:
                modality = key.rpartition("/")[2]
                self.coefficients[modality] = self.coefficients.get(modality, 0.0) + value

    def mean_loss(self) -> float:
        """Return the mean loss per sample so far, over all ranks, which have equally many. Reads from the device."""
        return float(self._ranks.sum(self.loss).item() / max(self.samples * self._ranks.size, 1))

    def mean_passes(self, num_encoders: int) -> float:
        """Forward passes of each encoder per sample, on all ranks."""
        encoded = int(self._ranks.sum(torch.tensor(self.encoded)))
        return encoded / (num_encoders * max(self.samples * self._ranks.size, 1))

    def mean_coefficients(self) -> dict[str, float]:
        """Return the mean coefficient per modality over all readings; empty for a method without coefficients."""
        return {f"coefficient_{modality}": total / self.readings for modality, total in self.coefficients.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all sums, for a checkpoint. The clock must be stopped."""
        return {
            "loss": self.loss.cpu(),
            "samples": self.samples,
            "coefficients": dict(self.coefficients),
            "looks": self.readings,
            "seconds": self.seconds,
            "waiting": self.waiting,
            "encoded": self.encoded,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.loss.copy_(state["loss"])
        self.samples = state["samples"]
        self.coefficients = dict(state["coefficients"])
        self.readings = state["looks"]
        self.seconds = state["seconds"]
        self.waiting = state["waiting"]
        self.encoded = state["encoded"]
