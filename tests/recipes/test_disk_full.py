"""A full disk is named, and does not hide why a run failed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe_common.cli import main
from recipe_common.comparison import compare
from recipe_common.report.events import EventLog
from recipes.tiny_recipe import RECIPE
from recipes.without_pictures import without_pictures

FULL = Path("/dev/full")
"""Takes no byte: there is no space left on this device."""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")]


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


def _fill(path: Path) -> None:
    """Let there be no room for a file that is written whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f".{path.name}.partial").symlink_to(FULL)


@pytest.mark.parametrize("name", ["config.json", "best.pt", "metrics.csv", "last.pt", "result.json"])
def test_the_file_that_there_is_no_room_for_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none" / name
    _fill(path)
    flags = ["--output", str(tmp_path), "--epochs", "1"]
    assert main(RECIPE, flags) == 2
    assert f"error: The disk should have room for {path}. Found none left: make room" in capsys.readouterr().err
    assert main(RECIPE, [*flags, "--resume"]) == 0


def test_no_room_for_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path / "comparison.md")
    assert main(RECIPE, ["--output", str(tmp_path), "--epochs", "1"]) == 2
    assert f"The disk should have room for {tmp_path / 'comparison.md'}" in capsys.readouterr().err


def test_no_room_for_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(figure: object, path: Path) -> list[Path]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compare, "write_figure", fails)
    assert main(RECIPE, ["--output", str(tmp_path), "--epochs", "1"]) == 2
    assert f"The disk should have room for {tmp_path}" in capsys.readouterr().err


def test_no_room_for_a_log_does_not_hide_why_a_run_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path / "none" / "seed-1" / "log.txt")
    flags = ["--epochs", "1", "--bad-seed", "1", "--seeds", "2"]
    assert main(RECIPE, ["--output", str(tmp_path), *flags]) == 1
    assert "FAILED: none, seed 1: the seed is bad" in capsys.readouterr().out


def test_no_room_for_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flush = EventLog.flush

    def fail(log: EventLog) -> None:
        flush(log)
        assert log._writer is not None
        monkeypatch.setattr(log._writer, "flush", lambda: FULL.write_text("no room"))
        flush(log)

    monkeypatch.setattr(EventLog, "flush", fail)
    assert main(RECIPE, ["--output", str(tmp_path), "--epochs", "1"]) == 2
    assert f"The disk should have room for {tmp_path / 'none' / 'events'}" in capsys.readouterr().err
