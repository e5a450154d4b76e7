"""A rank that is killed ends the others with an error in bounded time: in a step, in the criterion, between epochs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from torch.nn.parallel import DistributedDataParallel

from modbalance.testing._case import Training
from support.every_method import BUILT_IN, case_of
from support.ranks import on_ranks

pytestmark = pytest.mark.slow


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_death(rank: int, folder: Path, name: str, place: str) -> None:
    """Train on two ranks of which the second is killed; the first notes its error and how long it waited for it."""
    options: dict[str, Any] = {"direction": "gradient"} if (name, place) == ("cggm", "criterion") else {}
    training: Training = case_of(name, **options).training(wrap=DistributedDataParallel)
    data = [(tuple(x[rank::2] for x in inputs), target[rank::2]) for inputs, target in training.data()]
    training.run(data, stop=2)
    began = time.monotonic()
    try:
        if place == "epoch end":
            training.step(data[2])
            training.step(data[3])
            if rank == 1:
                die()
            training.end_epoch(data[2:4])
            training.run(data, start=4)
        else:
            training.optimizer.zero_grad()
            inputs, target = data[2]
            logits = training.wrapped(*inputs)
            if rank == 1 and place == "criterion":
                die()
            loss = training.criterion(logits, target)
            loss.backward()
            if rank == 1:
                die()
            training.optimizer.step()
            training.run(data, start=3)
    except RuntimeError as error:
        (folder / "error").write_text(str(error))
        (folder / "seconds").write_text(str(time.monotonic() - began))
        raise


PLACES = ("criterion", "step", "epoch end")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_other_rank_ends_with_an_error(name: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="rank 0"):
        on_ranks(train_until_death, tmp_path, name, place)
    assert "closed by peer" in (tmp_path / "error").read_text() or "reset by peer" in (tmp_path / "error").read_text()
    assert float((tmp_path / "seconds").read_text()) < 20
