"""Comparisons: seeds, processes, failures, kills, and folders that are in use."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from recipe_common.cli import main
from recipe_common.comparison import compare
from recipe_common.comparison.locks import folder_lock
from recipe_common.errors import RecipeError
from recipe_common.report.folder import RunFolder
from recipes import tiny_recipe
from recipes.tiny_recipe import RECIPE
from recipes.without_pictures import without_pictures

pytestmark = pytest.mark.slow

SCRIPT = Path(tiny_recipe.__file__)
PATH = os.pathsep.join(str(SCRIPT.parents[2] / name) for name in ("recipes", "tests"))
BOTH = ("--methods", "none", "ogm_ge", "--seeds", "2", "--epochs", "2")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", PATH)
    with without_pictures():
        yield


def run(output: Path, *flags: str) -> int:
    return main(RECIPE, ["--output", str(output), *flags])


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores(output: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return all numbers but the costs, by method and seed."""
    costs = ("seconds_per_step", "waiting", "memory")
    return {
        (row["method"], row["seed"]): {name: value for name, value in row.items() if name not in costs}
        for row in rows(output)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two methods, two seeds each, in this process."""
    output = tmp_path_factory.mktemp("whole")
    assert run(output, *BOTH) == 0
    return output


def test_every_method_has_a_run_per_seed(whole: Path) -> None:
    found = scores(whole)
    assert len(found) == 4
    assert (whole / "ogm_ge" / "seed-1" / "result.json").is_file()
    assert found["none", "0"] != found["none", "1"]
    assert "vs none, paired [95 % interval]" in (whole / "comparison.md").read_text()
    assert r"\toprule" in (whole / "comparison.tex").read_text()


def test_two_processes_at_a_time_give_the_same_table(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path, *BOTH, "--jobs", "2") == 0
    assert scores(tmp_path) == scores(whole)
    assert all(1e7 < float(row["memory"]) < 8e9 for row in rows(tmp_path))


def test_a_ceiling_learns_from_one_modality_only(tmp_path: Path) -> None:
    assert run(tmp_path, "--epochs", "1", "--ceilings") == 0
    for modality in ("audio", "visual"):
        result = json.loads((tmp_path / f"only-{modality}" / "result.json").read_text())
        assert result["test"]["test_accuracy"] == result["test"][f"test_accuracy_{modality}"]
    assert len(rows(tmp_path)) == 3
    assert main(RECIPE, ["--eval", str(tmp_path / "only-audio" / "best.pt")]) == 0


def test_a_finished_comparison_is_shown_again(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = scores(whole)
    for jobs in ((), ("--jobs", "2")):
        assert run(whole, *BOTH, "--resume", *jobs) == 0
        assert capsys.readouterr().out.count("nothing to train") == 4
    assert scores(whole) == before


def test_tables_that_lose_methods_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ("--epochs", "1")
    assert run(tmp_path, "--methods", "none", "ogm_ge", *one) == 0
    assert "for all in one" not in capsys.readouterr().out
    assert run(tmp_path, "--methods", "dgl", *one) == 0
    assert "lose none, ogm_ge; for all in one: --methods none ogm_ge dgl --resume" in capsys.readouterr().out
    assert run(tmp_path, "--methods", "none", "ogm_ge", "dgl", *one, "--resume") == 0
    assert [row["method"] for row in rows(tmp_path)] == ["none", "ogm_ge", "dgl"]


def test_files_are_written_before_anything_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(compare, "print_summary", closed)
    with pytest.raises(BrokenPipeError):
        run(tmp_path, "--methods", "none", "--epochs", "1")
    assert [row["method"] for row in rows(tmp_path)] == ["none"]
    assert (tmp_path / "report.html").is_file()


def test_a_changed_option_invalidates_only_the_runs_it_touches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--methods", "none", "ogm_ge", "--epochs", "1")
    assert run(tmp_path, *flags) == 0
    before = (tmp_path / "none" / "last.pt").stat().st_mtime_ns
    changed = (*flags, "--option", "ogm_ge.alpha=0.1")
    assert run(tmp_path, *changed, "--resume") == 2
    assert "--update" in capsys.readouterr().err
    assert run(tmp_path, *changed, "--update") == 0
    assert capsys.readouterr().out.count("nothing to train") == 1
    assert (tmp_path / "none" / "last.pt").stat().st_mtime_ns == before
    settings = json.loads((tmp_path / "ogm_ge" / "config.json").read_text())["settings"]
    assert settings["options"] == {"alpha": 0.1}


@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")])
def test_a_run_that_fails_has_its_row_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: tuple[str, ...]
) -> None:
    assert run(tmp_path, "--epochs", "1", "--bad-seed", "1", "--seeds", "2", *jobs) == 1
    assert "FAILED: none, seed 1: the seed is bad" in capsys.readouterr().out.replace("ValueError: ", "")
    by_seed = {row["seed"]: row for row in rows(tmp_path)}
    assert by_seed["0"]["test_accuracy"]
    assert "the seed is bad" in by_seed["1"]["failure"]
    assert "Traceback" in (tmp_path / "none" / "seed-1" / "log.txt").read_text()


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--epochs", "2", "--log-every", "1", "--lr", "1e30") == 1
    assert "FAILED: none, seed 0: the loss became nan in epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")])
def test_a_run_out_of_memory_is_reported_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: tuple[str, ...]
) -> None:
    assert run(tmp_path, "--epochs", "1", "--greedy-seed", "1", "--seeds", "2", *jobs) == 1
    assert "FAILED: none, seed 1: out of memory: Tried to allocate 1.00 TiB" in capsys.readouterr().out
    assert [bool(row["test_accuracy"]) for row in rows(tmp_path)] == [True, False]


@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")])
def test_the_reason_of_a_data_worker_is_told_without_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: tuple[str, ...]
) -> None:
    assert run(tmp_path, "--epochs", "1", "--bad-seed", "1", "--seeds", "2", "--workers", "1", *jobs) == 1
    assert "FAILED: none, seed 1: the seed is bad\n" in capsys.readouterr().out


def test_what_a_process_prints_goes_to_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINY_RECIPE_PRINTS", "5")  # a line that is JSON, too
    assert run(tmp_path, "--epochs", "1", "--seeds", "1", "--jobs", "2") == 0
    assert "5\n" in (tmp_path / "none" / "seed-0" / "log.txt").read_text()


def test_one_run_leaves_those_of_several_seeds_alone(tmp_path: Path) -> None:
    assert run(tmp_path, "--epochs", "1") == 0
    assert run(tmp_path, "--epochs", "1", "--seeds", "1") == 0
    assert run(tmp_path, "--epochs", "1", "--overwrite") == 0
    assert (tmp_path / "none" / "seed-0" / "result.json").is_file()


def test_fewer_epochs_than_done_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--methods", "none", "ogm_ge")
    assert run(tmp_path, *flags, "--epochs", "2") == 0
    before = (tmp_path / "comparison.md").read_text()
    assert run(tmp_path, *flags, "--epochs", "1", "--resume") == 2
    assert "Found 2: write `--epochs 2`" in capsys.readouterr().err
    assert (tmp_path / "comparison.md").read_text() == before


@pytest.mark.parametrize("left", [".config.json.partial", ".last.pt.partial"])
def test_a_file_that_a_kill_left_half_written_is_no_run(tmp_path: Path, left: str) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / left).write_text("{")
    assert run(tmp_path, "--epochs", "1", "--resume") == 0


def test_a_run_that_is_thrown_away_has_no_state_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, "--epochs", "1") == 0
    folder = RunFolder(tmp_path / "none", "tiny", {})
    removed: list[str] = []
    remove = Path.unlink

    def unlink(path: Path) -> None:
        removed.append(path.name)
        remove(path)

    monkeypatch.setattr(Path, "unlink", unlink)
    folder.clear()
    assert removed[:2] == ["result.json", "last.pt"]
    assert removed[-1] == "config.json"


def test_two_comparisons_in_one_folder_refuse_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_lock(tmp_path):
        assert run(tmp_path, "--epochs", "1") == 2
    assert f"process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert run(tmp_path, "--epochs", "1") == 0


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run(tmp_path / "file" / "runs", "--epochs", "1") == 2
    assert f"{tmp_path / 'file' / 'runs'} should be a folder that can be written to" in capsys.readouterr().err


def test_a_lock_ends_with_its_owner(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from recipe_common.comparison.locks import folder_lock
with folder_lock(Path({str(tmp_path)!r})):
    print(1, flush=True)
    input()
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "1\n"
    with pytest.raises(RecipeError, match=f"process {owner.pid}"), folder_lock(tmp_path):
        pass
    owner.kill()
    owner.communicate()
    with folder_lock(tmp_path):
        assert (tmp_path / ".lock").is_file()


def say_and_wait(pipe: Connection) -> None:
    pipe.send("here")
    time.sleep(60)


def test_a_lock_does_not_live_on_in_the_processes_that_its_owner_forked(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        ours, theirs = multiprocessing.Pipe()
        worker = multiprocessing.get_context("fork").Process(target=say_and_wait, args=(theirs,))
        worker.start()
        assert ours.recv() == "here"
    with folder_lock(tmp_path):
        assert worker.is_alive()
    worker.kill()
    worker.join()


def start(output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), "--output", str(output), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")])
def test_a_killed_comparison_continues_and_ends_with_the_same_table(
    whole: Path, tmp_path: Path, jobs: tuple[str, ...]
) -> None:
    slow = (*BOTH, "--save-every", "1")
    process = start(tmp_path, *slow, "--delay", "0.02", *jobs)
    wait_for(tmp_path / "ogm_ge" / "seed-0" / "last.pt", process)
    children = children_of(process.pid)
    process.kill()
    process.communicate()
    assert len(children) == (2 if jobs else 0)
    limit = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < limit, "a child outlived its parent"
        time.sleep(0.05)
    assert not (tmp_path / "comparison.csv").exists()
    # The delay is a setting of the runs: what was begun goes on with it.
    assert run(tmp_path, *slow, "--delay", "0.02", "--resume", *jobs) == 0
    assert scores(tmp_path) == scores(whole)


def test_ctrl_c_reaches_every_running_training(tmp_path: Path) -> None:
    process = start(tmp_path, *BOTH, "--delay", "0.05", "--jobs", "2", "--save-every", "1")
    wait_for(tmp_path / "ogm_ge" / "seed-0" / "last.pt", process)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "--resume" in out
    for method in ("none", "ogm_ge"):
        assert (tmp_path / method / "seed-0" / "last.pt").exists()
        assert not (tmp_path / method / "seed-0" / "result.json").exists()


def test_a_child_that_is_killed_fails_alone(tmp_path: Path) -> None:
    process = start(
        tmp_path, "--methods", "none", "ogm_ge", "--epochs", "2", "--delay", "0.05", "--jobs", "2", "--save-every", "1"
    )
    wait_for(tmp_path / "ogm_ge" / "last.pt", process)
    victim = int((tmp_path / "ogm_ge" / ".lock").read_text())
    os.kill(victim, signal.SIGKILL)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "FAILED: ogm_ge, seed 0: killed by signal 9" in out
    by_method: dict[str, Any] = {row["method"]: row for row in rows(tmp_path)}
    assert by_method["none"]["test_accuracy"]
