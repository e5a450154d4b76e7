"""One training of a recipe on two processes of torchrun."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe_common.cli import main
from recipe_common.errors import RecipeError
from recipe_common.training.precision import choose_device
from recipe_common.training.ranks import ALONE, Ranks
from recipes.tiny_recipe import RECIPE
from recipes.without_pictures import without_pictures

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS / "recipes" / "tiny_recipe.py"
SINGLE_THREAD_AT_EXIT = TESTS / "recipes" / "single_thread_at_exit.py"
CLOCKS = ("seconds", "waiting")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(output: Path, *flags: str, script: Path = SCRIPT) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS.parent / "recipes"), str(TESTS)])
    return subprocess.Popen(
        [*TORCHRUN, str(script), "--device", "cpu", "--output", str(output), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=240)
    return out


def succeeded(process: subprocess.Popen[str]) -> str:
    out = ended(process)
    assert process.returncode == 0, out
    return out


def wait_for_checkpoint(path: Path, process: subprocess.Popen[str], newer_than: float = 0.0) -> float:
    """Return when the file was written."""
    deadline = time.monotonic() + 120
    while not path.exists() or path.stat().st_mtime <= newer_than:
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
    return path.stat().st_mtime


def state_of(output: Path, method: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(output / method / "last.pt", weights_only=True)
    return state


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


def test_two_processes_equal_one(tmp_path: Path) -> None:
    flags = ["--methods", "none", "ogm_ge", "--plain", "--epochs", "2", "--accumulate", "2"]
    process = start(tmp_path / "two", *flags)
    assert main(RECIPE, [*flags, "--device", "cpu", "--output", str(tmp_path / "one")]) == 0
    out = succeeded(process)
    assert out.count("Written:") == 1
    assert len(rows_of(tmp_path / "two" / "comparison.csv")) == 2
    for method in ("none", "ogm_ge"):
        one, two = state_of(tmp_path / "one", method), state_of(tmp_path / "two", method)
        for name, value in one["model"].items():
            assert (two["model"][name] - value).abs().max() <= 1e-6, name
        assert len(two["history"]) == len(one["history"]) == 2
        for row, expected in zip(two["history"], one["history"], strict=True):
            scores = {name: value for name, value in expected.items() if name not in CLOCKS}
            assert {name: row[name] for name in scores} == pytest.approx(scores, rel=1e-5)


def test_stopped_killed_and_resumed_equals_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ["--methods", "ogm_ge", "--epochs", "2", "--delay", "0.05"]
    succeeded(start(whole, *flags))
    last = parts / "ogm_ge" / "last.pt"

    process = start(parts, *flags, "--save-every", "1")
    wait_for_checkpoint(last, process)
    process.send_signal(signal.SIGINT)
    out = ended(process)
    assert process.returncode != 0
    assert out.count("Interrupted; the state is saved") == 1
    assert "torchrun --nproc-per-node 2" in out
    stopped = state_of(parts, "ogm_ge")["sampler"]
    assert (stopped["epoch"], stopped["offset"]) < (2, 0)

    process = start(parts, *flags, "--save-every", "1", "--resume")
    wait_for_checkpoint(last, process, newer_than=last.stat().st_mtime)
    os.kill(int((parts / ".lock").read_text()), signal.SIGKILL)
    ended(process)
    assert process.returncode != 0

    succeeded(start(parts, *flags, "--resume"))
    assert rows_of(parts / "ogm_ge" / "metrics.csv") == rows_of(whole / "ogm_ge" / "metrics.csv")
    one, other = state_of(parts, "ogm_ge"), state_of(whole, "ogm_ge")
    assert all(torch.equal(one["model"][name], value) for name, value in other["model"].items())
    for rank in range(2):
        assert torch.equal(one["ranks"][rank]["rng"]["cpu"], other["ranks"][rank]["rng"]["cpu"])
    assert not torch.equal(one["ranks"][0]["rng"]["cpu"], one["ranks"][1]["rng"]["cpu"])

    capsys.readouterr()
    alone = ["--methods", "ogm_ge", "--epochs", "3", "--delay", "0.05", "--device", "cpu", "--resume"]
    assert main(RECIPE, [*alone, "--output", str(parts)]) == 2
    assert "number of processes" in capsys.readouterr().err


def test_no_thread_outlives_the_ranks_talk(tmp_path: Path) -> None:
    # One that lets go of a tensor while Python ends aborts a rank after all its work.
    succeeded(start(tmp_path, "--methods", "none", "agm", "--epochs", "1", script=SINGLE_THREAD_AT_EXIT))


def test_an_error_of_the_first_rank_ends_all(tmp_path: Path) -> None:
    process = start(tmp_path, "--bad")
    out = ended(process)
    assert process.returncode != 0
    assert out.count("nowhere should hold wav files") == 1
    assert "recipe_common/training" not in out  # no traceback of ours; torchrun gives one of its own


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"jobs": 2, "batch_size": 4}, "--jobs 2"), ({"jobs": None, "batch_size": 5}, "a multiple of 2")],
)
def test_flags_that_processes_cannot_share_are_refused(flags: dict[str, Any], message: str) -> None:
    ALONE.check(**flags)
    with pytest.raises(RecipeError, match=message):
        Ranks(1, 2, 1).check(**flags)


def test_a_rank_chooses_its_own_device() -> None:
    assert choose_device("cpu", Ranks(1, 2, 1)) == torch.device("cpu")
    with pytest.raises(RecipeError, match="--device cuda"):
        choose_device("cuda:0", Ranks(1, 2, 1))


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.from_environment() == ALONE
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(5, 8, 1)
