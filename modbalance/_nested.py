"""Optimizers inside of optimizers: ZeroRedundancyOptimizer, SAM and Lookahead keep state in one that they wrap."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import Optimizer


def nested(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yield an optimizer and those among its attributes, and theirs, each once."""
    waiting, seen = [optimizer], {id(optimizer)}
    while waiting:
        current = waiting.pop(0)
        yield current
        for value in vars(current).values():
            for each in value if isinstance(value, list | tuple) else (value,):
                if isinstance(each, Optimizer) and id(each) not in seen:
                    seen.add(id(each))
                    waiting.append(each)
