"""Trainings that are killed with -9 at twenty random steps: each goes on to the weights of the uninterrupted one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from modbalance.testing import _processes
from modbalance.testing._case import STEPS, different
from support.every_method import BUILT_IN, case_of
from support.ranks import PRELOADED

pytestmark = pytest.mark.slow

KILLS = 20
PERIOD = 3  # steps between two checkpoints, which therefore also stand within an epoch
REPEATS = 2  # of the batches


def train(name: str, path: Path, death: int | None) -> None:
    """Train from the last checkpoint on, if there is one, and save every few steps; die at a step, or while saving."""
    torch.set_num_threads(1)
    training = case_of(name).training(seed=7 if path.exists() else 0)
    data = training.data() * REPEATS
    start = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        training.model.load_state_dict(saved["model"])
        training.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        start = saved["step"]
    for index in range(start, len(data)):
        training.optimizer.zero_grad()
        training.backward(data[index])
        if index == death and index % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        training.optimizer.step()
        if index % STEPS == STEPS - 1:
            training.end_epoch(data[index + 1 - STEPS : index + 1])
        if (index + 1) % PERIOD == 0 or index + 1 == len(data) or index == death:
            save(training, path, index + 1, dies=index == death)


def save(training: Any, path: Path, step: int, *, dies: bool) -> None:
    part = path.with_suffix(".part")
    saved = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
    torch.save(saved | {"rng": torch.get_rng_state(), "step": step}, part)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    part.replace(path)


def deaths() -> dict[str, list[int]]:
    """Return the steps at which the training of each method is killed, in turn; a fixed seed chooses."""
    chosen, steps = random.Random(13), 8 * REPEATS
    found: dict[str, list[int]] = {name: [] for name in BUILT_IN}
    for index in range(max(KILLS, len(BUILT_IN))):
        found[BUILT_IN[index % len(BUILT_IN)]].append(chosen.randrange(steps))
    return found


def run_to_its_end(name: str, path: Path, death: int | None) -> int:
    """Train in a process of its own and return how it ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_processes.PRELOADED, *PRELOADED])
    process = context.Process(target=train, args=(name, path, death))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_killed_training_goes_on_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "last.pt", tmp_path / "whole.pt"
    kills = 0
    for death in sorted(deaths()[name]):
        code = run_to_its_end(name, path, death)
        assert code == -signal.SIGKILL
        kills += 1
    assert kills == len(deaths()[name])
    assert run_to_its_end(name, path, None) == 0
    assert run_to_its_end(name, whole, None) == 0

    killed, uninterrupted = (torch.load(each, weights_only=True) for each in (path, whole))
    assert different(killed, uninterrupted) == []


def test_there_are_twenty_kills() -> None:
    assert sum(map(len, deaths().values())) >= KILLS
