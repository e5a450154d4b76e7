"""Measurement of training work: forward passes of the encoders, and time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


class EncoderCounter:
    """Counts the samples that go through the encoders, in training steps and in methods.

    Args:
        model: The bare model.
        encoders: For each modality the path of its encoder in ``model``, or several paths of which the first counts.
    """

    def __init__(self, model: nn.Module, encoders: Mapping[str, str | Sequence[str]]) -> None:
        self.samples = 0
        self.is_counting = True
        self.num_encoders = len(encoders)
        for paths in encoders.values():
            path = paths if isinstance(paths, str) else paths[0]
            model.get_submodule(path).register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_counting:
            self.samples += _batch_size([*args, *kwargs.values()])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing while the context is open."""
        self.is_counting = False
        try:
            yield
        finally:
            self.is_counting = True

    def take(self) -> int:
        """Return the count since the last call."""
        samples, self.samples = self.samples, 0
        return samples


class Waiting:
    """Measures the seconds that an iterator takes to return its items."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def take(self) -> float:
        """Return the seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items."""
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield item


def _batch_size(value: Any) -> int:
    """Return the length of the first tensor in nested lists, tuples and mappings; 0 if there is none."""
    if isinstance(value, Tensor):
        return len(value)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((size for item in items if (size := _batch_size(item))), 0)
