"""What methods log: kept as tensors on their device, read on the host by `metrics()` alone."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from modbalance.errors import ModbalanceWarning


class Telemetry:
    """The latest value of every logged quantity, and counters."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor | float] = {}
        self._counters: dict[str, Tensor | float] = {}
        self._warnings: dict[str, str] = {}

    def log(self, key: str, value: Tensor | float) -> None:
        """Keep the latest value of ``key``: a number or a 0-dim tensor, which is not read."""
        self._values[key] = value.detach() if isinstance(value, Tensor) else value

    def count(self, key: str, increment: Tensor, warning: str | None = None) -> None:
        """Add ``increment`` (0-dim) to the counter ``key``; the first `read` with it above 0 gives ``warning``."""
        if warning is not None and key not in self._counters:
            self._warnings[key] = warning
        self._counters[key] = self._counters.get(key, 0) + increment.detach()

    def forget(self, method: str) -> None:
        """Drop the values, not the counters, of a method whose window is over."""
        self._values = {key: v for key, v in self._values.items() if not key.startswith(method + "/")}

    def read(self) -> dict[str, float]:
        """Move everything to the host, one copy per device."""
        logged = self._values | self._counters
        by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
        numbers: dict[str, float] = {}
        for key, value in logged.items():
            if isinstance(value, Tensor):
                by_device.setdefault(value.device, []).append((key, value))
            else:
                numbers[key] = float(value)
        for entries in by_device.values():
            vector = torch.stack([value.reshape(()).float() for _, value in entries])
            numbers.update(zip([key for key, _ in entries], vector.tolist(), strict=True))
        for warning in {self._warnings[key]: None for key in self._warnings if numbers[key] > 0}:
            self._warnings = {key: other for key, other in self._warnings.items() if other != warning}
            warnings.warn(warning, ModbalanceWarning, stacklevel=3)
        return {key: numbers[key] for key in logged}
