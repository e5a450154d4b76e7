"""A real Ctrl-C to a real process."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("tiny_recipe.py")
CLOCKS = ("seconds", "waiting")
DELAY = 0.02  # seconds per sample: an epoch of 22 samples takes half a second


def _start(output: Path, *flags: str) -> subprocess.Popen[str]:
    arguments = ["--methods", "ogm_ge", "--epochs", "2", "--delay", str(DELAY), "--output", str(output), *flags]
    path = os.pathsep.join([str(TESTS.parent / "recipes"), str(TESTS)])
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def _wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def _finish(process: subprocess.Popen[str], code: int) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code, out
    return out


def _weights(output: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(output / "ogm_ge" / "last.pt", weights_only=True)["model"]
    return weights


def _rows(output: Path) -> list[dict[str, str]]:
    with (output / "ogm_ge" / "metrics.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    _finish(_start(output), 0)
    return output


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, "2"), (signal.SIGTERM, "0")])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(
    number: signal.Signals, workers: str, uninterrupted: Path, tmp_path: Path
) -> None:
    process = _start(tmp_path, "--save-every", "1", "--workers", workers)
    _wait_for(tmp_path / "ogm_ge" / "last.pt", process)
    process.send_signal(number)
    out = _finish(process, 130)
    assert "Traceback" not in out
    assert "--resume" in out.splitlines()[-1]
    _finish(_start(tmp_path, "--resume", "--workers", workers), 0)
    expected = _weights(uninterrupted)
    for name, tensor in _weights(tmp_path).items():
        assert torch.equal(tensor, expected[name]), name
    assert _rows(tmp_path) == _rows(uninterrupted)
