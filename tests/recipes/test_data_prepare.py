"""The engine of `prepare`: what it leaves behind when all goes well, when sources are bad, and when it is killed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

import recipe_common
from recipe_common.data.prepare.engine import (
    Failure,
    Item,
    Preparation,
    _append,
    _process,
    checksum,
    parse_preparation,
    read_manifest,
    run_prepare,
    verify,
)
from recipe_common.data.prepare.processes import progress_bar
from recipe_common.errors import RecipeError
from recipe_common.files import atomic_file, atomic_folder

RECIPES = Path(recipe_common.__file__).parents[1]


def make(item: Item, pause: float = 0.0) -> None:
    """Upper-case a text into a file, and its letters into a folder with a file for each."""
    text = item.source.read_text()
    if "bad" in text:
        raise ValueError("it says bad")
    if "full" in text:
        raise OSError(errno.ENOSPC, "No space left on device")
    whole, letters = item.outputs
    if not whole.exists():
        with atomic_file(whole) as path:
            path.write_text(text.upper())
    if not letters.exists():
        with atomic_folder(letters) as folder:
            for number, letter in enumerate(text):
                (folder / f"{number:03d}.txt").write_text(letter)
                time.sleep(pause)


def item_of(root: Path, name: str) -> Item:
    return Item(root / "raw" / f"{name}.txt", (root / "whole" / f"{name}.txt", root / "letters" / name))


def write_sources(root: Path, **texts: str) -> list[Item]:
    (root / "raw").mkdir(exist_ok=True)
    for name, text in texts.items():
        (root / "raw" / f"{name}.txt").write_text(text)
    return [item_of(root, name) for name in texts]


def run(root: Path, items: list[Item]) -> int:
    return run_prepare(root, items, make, workers=2, what="texts")


def outputs(root: Path) -> dict[str, int]:
    """Every file that readers look at, with the time at which it was written."""
    files = [path for folder in ("whole", "letters") for path in (root / folder).rglob("*") if path.is_file()]
    visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in visible}


def lines_of(root: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]


def test_the_manifest_has_a_line_per_item_with_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, write_sources(tmp_path, one="ab", two="cde")) == 0
    assert "2 of 2 texts are ready" in capsys.readouterr().out
    lines = {line["source"]: line for line in lines_of(tmp_path)}
    assert lines.keys() == {"raw/one.txt", "raw/two.txt"}
    folder = hashlib.sha256(b"000.txt\x001\x00a" + b"001.txt\x001\x00b").hexdigest()
    assert lines["raw/one.txt"] == {
        "source": "raw/one.txt",
        "bytes": 2,
        "outputs": {
            "whole/one.txt": {"files": 1, "bytes": 2, "sha256": hashlib.sha256(b"AB").hexdigest()},
            "letters/one": {"files": 2, "bytes": 2, "sha256": folder},
        },
    }


def test_a_checksum_of_a_folder_knows_names_and_contents_but_no_hidden_files(tmp_path: Path) -> None:
    def content(**files: str) -> str:
        for path in tmp_path.iterdir():
            path.unlink()
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return str(checksum(tmp_path)["sha256"])

    assert content(a="12", b="3") == content(b="3", a="12")
    assert len({content(a="12", b="3"), content(a="1", b="23"), content(a="12", c="3"), content(a="123")}) == 4
    before = content(a="1")
    (tmp_path / ".DS_Store").write_text("2")
    assert checksum(tmp_path)["sha256"] == before


def test_a_bar_that_is_switched_off_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(disable=True) as bar:
        bar.advance(bar.add_task("clips", total=1))

    assert capsys.readouterr() == ("", "")


def test_a_second_run_touches_nothing(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab", two="cd")
    run(tmp_path, items)
    before, lines = outputs(tmp_path), lines_of(tmp_path)
    assert run(tmp_path, items) == 0
    assert (outputs(tmp_path), lines_of(tmp_path)) == (before, lines)


@pytest.mark.slow
def test_outputs_without_a_line_get_one_and_stay(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab", two="cd")
    run(tmp_path, items)
    before, lines = outputs(tmp_path), lines_of(tmp_path)
    (tmp_path / "manifest.jsonl").unlink()
    run(tmp_path, items)
    assert outputs(tmp_path) == before
    assert sorted(lines_of(tmp_path), key=str) == sorted(lines, key=str)


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab")
    run(tmp_path, items)
    before = outputs(tmp_path)
    (tmp_path / "whole" / "one.txt").unlink()
    run(tmp_path, items)
    after = outputs(tmp_path)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {"whole/one.txt"}


@pytest.mark.slow
def test_a_torn_last_line_is_dropped_and_written_anew(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab", two="cd")
    run(tmp_path, items)
    manifest = tmp_path / "manifest.jsonl"
    complete = read_manifest(tmp_path)
    for cut in (1, 20, len(manifest.read_bytes().splitlines()[-1])):
        manifest.write_bytes(manifest.read_bytes()[:-cut])
        assert len(read_manifest(tmp_path)) == 2
        assert run(tmp_path, items) == 0
        assert read_manifest(tmp_path) == complete
        assert len(lines_of(tmp_path)) == 2


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab")
    run(tmp_path, items)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(b"{nonsense\n" + manifest.read_bytes())
    with pytest.raises(RecipeError, match=r"manifest\.jsonl:1 should be a JSON record\. Found '\{nonsense'"):
        run(tmp_path, items)


@pytest.mark.slow
def test_bad_sources_are_listed_and_the_others_are_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = write_sources(tmp_path, one="ab", two="bad", three="cd")
    assert run(tmp_path, items) == 1
    captured = capsys.readouterr()
    assert "2 of 3 texts are ready" in captured.out
    assert f"{items[1].source}: it says bad" in captured.err
    assert (tmp_path / "unreadable_texts.txt").read_text() == f"{items[1].source}: it says bad\n"
    assert len(lines_of(tmp_path)) == 2

    items[1].source.write_text("ef")
    assert run(tmp_path, items) == 0
    assert not (tmp_path / "unreadable_texts.txt").exists()
    assert len(lines_of(tmp_path)) == 3


def test_a_source_that_is_gone_is_a_bad_source(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab")
    items[0].source.unlink()
    assert run(tmp_path, items) == 1
    assert "No such file" in (tmp_path / "unreadable_texts.txt").read_text()


def test_failures_give_their_reason_without_the_name_of_the_error(tmp_path: Path) -> None:
    def fail(error: Exception, item: Item) -> None:
        raise error

    item = item_of(tmp_path, "one")
    error = RecipeError("It should be x", found="y", fix="write x")
    assert _process(item, partial(fail, error), tmp_path) == Failure(item.source, "It should be x. Found y: write x.")
    assert _process(item, partial(fail, ValueError()), tmp_path) == Failure(item.source, "ValueError")
    with pytest.raises(ZeroDivisionError):
        _process(item, partial(fail, ZeroDivisionError()), tmp_path)


@pytest.mark.slow
def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab", two="full", three="full", four="full")
    with pytest.raises(RecipeError, match=r"disk should have room .*No space left"):
        run(tmp_path, items)
    assert not (tmp_path / "unreadable_texts.txt").exists()
    assert list(tmp_path.rglob(".*.partial")) == []
    for item in items:
        item.source.write_text("ef")
    assert run(tmp_path, items) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
def test_a_manifest_on_a_full_disk_stops_the_run() -> None:
    with Path("/dev/full").open("ab", buffering=0) as manifest, pytest.raises(RecipeError, match="should have room"):
        _append(manifest, {"source": "x"})


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab")
    gone = item_of(tmp_path, "gone")
    for item in (*items, gone):
        whole, letters = (output.with_name(f".{output.name}.partial") for output in item.outputs)
        letters.mkdir(parents=True)
        (letters / "999.txt").write_text("z")
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text("half")
    assert run(tmp_path, items) == 0
    assert list(tmp_path.rglob(".*.partial")) == []
    assert outputs(tmp_path).keys() == {"whole/one.txt", "letters/one/000.txt", "letters/one/001.txt"}


@pytest.mark.parametrize("context", [atomic_file, atomic_folder])
def test_a_failure_leaves_nothing(tmp_path: Path, context: Callable[[Path], AbstractContextManager[Path]]) -> None:
    target = tmp_path / "folder" / "name"

    @contextmanager
    def failing() -> Iterator[None]:
        with context(target) as path:
            (path / "file" if path.is_dir() else path).write_text("half")
            yield

    with pytest.raises(ValueError, match="stop"), failing():
        raise ValueError("stop")
    assert list(target.parent.iterdir()) == []


def test_two_sources_of_one_output_are_refused(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab", two="cd")
    clash = Item(items[1].source, items[0].outputs)
    with pytest.raises(RecipeError, match=r"whole/one\.txt should have one source\. Found .*one\.txt, .*two\.txt"):
        run(tmp_path, [items[0], clash])


def test_a_second_run_at_the_same_time_is_refused(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    items = write_sources(tmp_path, one="ab")
    with (tmp_path / "manifest.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RecipeError, match="Found another run in"):
            run(tmp_path, items)
    assert run(tmp_path, items) == 0


def test_nothing_to_do_is_no_failure(tmp_path: Path) -> None:
    assert run(tmp_path, []) == 0


@pytest.mark.parametrize("what", ["missing", "a file in its place"])
def test_a_root_that_cannot_be_used_is_explained(tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    if what == "missing":
        with pytest.raises(RecipeError, match="Found none at"):
            run_prepare(root, [], make, workers=1)
    else:
        (root / "manifest.jsonl").mkdir(parents=True)
        with pytest.raises(RecipeError, match=r"manifest\.jsonl should be writable"):
            run_prepare(root, [], make, workers=1)


def test_verify_finds_no_fault_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = write_sources(tmp_path, one="ab", two="cd")
    run(tmp_path, items)
    items[0].source.unlink()
    assert verify(tmp_path, workers=2) == 0
    assert "4 of 4 outputs" in capsys.readouterr().out


def test_verify_lists_what_differs_or_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = write_sources(tmp_path, one="ab", two="cd", three="ef")
    run(tmp_path, items)
    items[0].outputs[0].write_text("AX")
    (items[1].outputs[1] / "001.txt").unlink()
    items[2].outputs[0].unlink()
    items[2].source.write_text("efg")
    assert verify(tmp_path, workers=1) == 1
    captured = capsys.readouterr()
    assert "2 of 6 outputs" in captured.out
    assert f"{items[0].outputs[0]}: differs" in captured.err
    assert f"{items[1].outputs[1]}: differs (1 files of 1 bytes; recorded: 2 files of 2 bytes)" in captured.err
    assert f"{items[2].outputs[0]}: missing" in captured.err
    assert f"{items[2].outputs[1]}: its source {items[2].source} has changed" in captured.err


def test_verify_without_a_manifest_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Found none: run prepare without `--verify`"):
        verify(tmp_path)


def test_the_parser_has_the_flags_of_every_prepare(tmp_path: Path) -> None:
    def parsed(*arguments: str) -> Preparation:
        return parse_preparation(Preparation, "x.py prepare", "Makes things.", arguments)

    settings = parsed("--data-root", str(tmp_path))
    assert (settings.data_root, settings.workers, settings.verify) == (tmp_path, os.cpu_count(), False)
    with pytest.raises(SystemExit):
        parsed("--data-root", str(tmp_path), "--workers", "0")
    with pytest.raises(SystemExit):
        parsed("--workers", "1")


def children_of(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from recipe_common.data.prepare.engine import run_prepare
from recipes.test_data_prepare import item_of, make
root = Path(sys.argv[1])
items = [item_of(root, path.stem) for path in sorted((root / "raw").iterdir())]
sys.exit(run_prepare(root, items, partial(make, pause=0.002), workers=2))
"""


def start(root: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(RECIPES), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", SCRIPT, str(root)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def test_sources_that_are_no_data_are_counted_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = write_sources(tmp_path, one="ab", two="cd", three="ef", four="gh", bad="bad " + POINTER, page="<html>bad")
    items += write_sources(tmp_path, pointer=POINTER + "bad")
    assert run(tmp_path, items) == 1
    captured = capsys.readouterr()
    assert "4 of 7 texts are ready" in captured.out
    assert "\n1 of 7 texts are git-lfs pointers: run `git lfs pull` in the folder of the download\n" in captured.err
    assert "\n1 of 7 texts are web pages: download the file itself\n" in captured.err


def test_prepare_stops_at_once_where_most_sources_are_no_data(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab", two=POINTER, three=POINTER, four="")
    with pytest.raises(
        RecipeError,
        match=r"The 4 texts of .* should be whole files\. Found 2 git-lfs pointers and 1 empty files: run `git lfs",
    ):
        run(tmp_path, items)
    assert outputs(tmp_path) == {}


def test_finished_items_do_not_count_as_no_data(tmp_path: Path) -> None:
    items = write_sources(tmp_path, one="ab", two="cd")
    assert run(tmp_path, items) == 0
    write_sources(tmp_path, one=POINTER, two=POINTER)
    assert run(tmp_path, items) == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_a_killed_run_continues_and_leaves_no_process(tmp_path: Path) -> None:
    items = write_sources(tmp_path, **{f"text{number:02d}": "x" * 20 for number in range(40)})
    first = start(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    wait_until(lambda: manifest.is_file() and manifest.read_bytes().count(b"\n") >= 3)
    workers = children_of(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert len(workers) >= 2
    wait_until(lambda: not any(is_alive(worker) for worker in workers))

    done, lines = outputs(tmp_path), lines_of(tmp_path)
    assert 3 * 21 <= len(done) < 40 * 21
    assert start(tmp_path).wait() == 0
    everything = outputs(tmp_path)
    assert len(everything) == 40 * 21
    assert {path: everything[path] for path in done} == done
    assert lines_of(tmp_path)[: len(lines)] == lines
    assert len(read_manifest(tmp_path)) == 2 * len(items)
    assert list(tmp_path.rglob(".*.partial")) == []
    assert verify(tmp_path) == 0
