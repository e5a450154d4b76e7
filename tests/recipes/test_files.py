"""Locks between processes; `test_data_prepare.py` looks at files that appear whole."""

from __future__ import annotations

import errno
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest

from recipe_common.comparison.locks import folder_lock
from recipe_common.files import lock, remove_partials

fcntl = pytest.importorskip("fcntl")


def test_a_lock_keeps_others_out_until_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a") as one, path.open("a") as other:
        assert lock(one, wait=False)
        assert not lock(other, wait=False)
        one.close()
        assert lock(other, wait=False)


def test_one_who_waits_goes_on_when_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order = []
    with path.open("a") as one, path.open("a") as other:
        assert lock(one, wait=False)

        def follow() -> None:
            assert lock(other, wait=True)
            order.append("other")

        waiting = threading.Thread(target=follow)
        waiting.start()
        waiting.join(0.2)
        order.append("one")
        one.close()
        waiting.join()
    assert order == ["one", "other"]


def hold(path: Path, held: Any) -> None:
    with path.open("a") as handle:
        assert lock(handle, wait=False)
        held.set()
        threading.Event().wait()


def test_a_killed_process_gives_its_lock_back(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", held), daemon=True)
    process.start()
    assert held.wait(60)
    with (tmp_path / "lock").open("a") as handle:
        assert not lock(handle, wait=False)
        process.kill()
        process.join()
        assert lock(handle, wait=False)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOSYS])
def test_nobody_is_kept_out_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool, reason: int
) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(reason, "no locks")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with (tmp_path / "lock").open("a") as one, (tmp_path / "lock").open("a") as other:
        assert lock(one, wait=wait)
        assert lock(other, wait=wait)
    with folder_lock(tmp_path), folder_lock(tmp_path):
        pass


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".folder.partial").mkdir()
    for name in (".folder.partial/file", ".file.partial", "file.partial", ".file"):
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file.partial", ".file"}
