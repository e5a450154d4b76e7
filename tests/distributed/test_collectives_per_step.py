"""A step of a method costs at most one collective beside those of DDP, counted as operations of c10d."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from contract.test_conformance import OPTIONS
from modbalance._plugins import load_method
from modbalance.testing._case import Case
from support.every_method import BUILT_IN
from support.ranks import on_ranks

pytestmark = pytest.mark.slow

# CGGM: its term of the loss needs the joint gradient of the head before the backward; the step needs sums over
# micro-batches. MLA: each of two modalities needs the head that the one before has moved.
EXCEPTIONS = {"cggm 1": 2, "mla 0": 2, "mla 1": 2, "mla 2": 2}
REDUCING = ("agm", "cggm", "inforeg", "mla", "mmpareto", "ogm", "ogm_ge", "opm", "pmr")


class Collectives(TorchDispatchMode):
    """Counts collectives in its body."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace in ("c10d", "_c10d_functional") and "wait" not in str(func)
        return func(*args, **(kwargs or {}))


def counted(rank: int) -> dict[str, int]:
    """Return, by method and options, the largest number of collectives in criterion and step, after the first step."""
    found = {}
    for name in BUILT_IN:
        for index, options in enumerate([*OPTIONS[name], *([{"end_epoch": 0}] if name == "agm" else [])]):
            training = Case(load_method(name), options).training(wrap=DistributedDataParallel)
            data = [(tuple(x[rank::2] for x in inputs), target[rank::2]) for inputs, target in training.data()]
            counts = []
            for step, (inputs, target) in enumerate(data):
                training.optimizer.zero_grad()
                logits = training.wrapped(*inputs)
                with Collectives() as in_criterion:
                    loss = training.criterion(logits, target)
                loss.backward()
                with Collectives() as in_step:
                    training.optimizer.step()
                counts.append(in_criterion.count + in_step.count)
                if step % 2:
                    training.end_epoch(data[step - 1 : step + 1])
            found[f"{name} {index}"] = max(counts[1:])
    return found


def test_at_most_one_collective_per_step() -> None:
    first, second = on_ranks(counted)
    assert first == second
    assert {name: count for name, count in first.items() if count > 1} == EXCEPTIONS
    assert {name.split()[0] for name, count in first.items() if count} == {*REDUCING}
