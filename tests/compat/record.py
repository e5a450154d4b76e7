"""Record tests/compat/data anew: `PYTHONPATH=$C:$C/plugins:$C/recipes:$C/tests:tests python tests/compat/record.py`.

C is the checkout whose code is recorded; every checkout will do whose command lines and public API are those of today.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import modbalance
from compat.scenarios import (
    ARITHMETIC,
    DATA,
    END,
    FOLDERS,
    METHODS,
    SAVED,
    SWEEP,
    Call,
    Training,
    arithmetic,
    recipes,
    train_briefly,
)

CHECKOUT = Path(modbalance.__file__).parents[1]
LEFT_OUT = (".lock", "*.png", "*.pdf", "*.html")

INTERRUPTED = """
import runpy, signal, sys
from torch.optim import SGD
from torch.optim.optimizer import register_optimizer_step_post_hook

steps_left = int(sys.argv[1])
sys.argv = sys.argv[2:]

def stop(optimizer, args, kwargs):
    global steps_left
    steps_left -= type(optimizer) is SGD
    if steps_left == 0:
        steps_left = -1
        signal.raise_signal(signal.SIGINT)

register_optimizer_step_post_hook(stop)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def record_checkpoint(method: str, path: Path) -> None:
    """Write a checkpoint, and the weights and metrics of the same training some steps later."""
    training = Training(method)
    training.run(0, SAVED)
    checkpoint = {key: _copy(value) for key, value in training.state_dict().items()}
    training.run(SAVED, END)
    path.parent.mkdir(parents=True, exist_ok=True)
    end = {**training.state_dict(), "metrics": training.optimizer.metrics()}
    torch.save({"checkpoint": checkpoint, "end": end}, path)


def _copy(state: object) -> object:
    with tempfile.TemporaryFile() as file:
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)


def record_folder(call: Call, path: Path) -> None:
    """Let a recipe train until it is interrupted, and keep what it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        trials = ["--trials", "2"] if call is SWEEP else []
        command = [str(CHECKOUT / call.script), *call.flags, *trials, "--output", "output"]
        status = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, str(call.stop_after), *command], cwd=folder, check=False
        ).returncode
        if status != (130 if call.stop_after else 0):
            raise SystemExit(f"{call.script} ended with status {status}")
        shutil.copytree(Path(folder, "output"), path, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for events in path.rglob("events.out.tfevents.*"):
        begin, time, *_, number = events.name.rsplit(".", 4)
        events.rename(events.with_name(f"{begin}.{time}.host.1.{number}"))


def record_settings(name: str, path: Path) -> None:
    """Keep the settings of a recipe with the values of all its flags, from a run with a tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        if status := train_briefly(recipes()[name], Path(folder)):
            raise SystemExit(f"{name} ended with status {status}")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(folder, "none", "config.json"), path)


def main() -> None:
    """Record everything."""
    torch.set_num_threads(1)
    shutil.rmtree(DATA, ignore_errors=True)
    for method in METHODS:
        record_checkpoint(method, DATA / "checkpoints" / f"{method}.pt")
    for name, call in FOLDERS.items():
        record_folder(call, DATA / "folders" / name)
    for name in recipes():
        record_settings(name, DATA / "settings" / f"{name}.json")
    torch.save(arithmetic(), ARITHMETIC)


if __name__ == "__main__":
    main()
