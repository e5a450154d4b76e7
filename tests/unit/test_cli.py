"""The command line `modbalance`: `list`, `show` and `new`."""

from __future__ import annotations

from pathlib import Path

import pytest

from modbalance.cli import main
from support.plugin_distributions import Add


def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """Run `modbalance ARGUMENTS` in a wide terminal; return its status and what it printed."""
    monkeypatch.setenv("COLUMNS", "400")
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_list_shows_every_method_with_its_problem(
    add: Add, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add("modbalance-broken", "raise RuntimeError('in [/the] middle of [bold]')")

    status, printed = command_line(monkeypatch, capsys, "list")

    rows = {
        name: next(line for line in printed.splitlines() if f" {name} " in line) for name in ("none", "ogm", "made")
    }
    assert status == 0
    assert "modbalance 0.1.0" in rows["ogm"]
    assert "unavailable" in rows["made"]
    assert "RuntimeError: in [/the] middle of [bold]" in rows["made"]
    assert "modbalance-broken 1.2" in rows["made"]


def test_show_gives_the_options_of_both_presets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = command_line(monkeypatch, capsys, "show", "ogm_ge")

    row = next(line for line in printed.splitlines() if "param_filter" in line)
    assert status == 0
    assert "'conv'" in row
    assert "'all'" in row


def test_show_of_an_unknown_method_fails_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = command_line(monkeypatch, capsys, "show", "ogmge")

    assert status == 2
    assert printed.startswith("modbalance: No installed method is named 'ogmge'. Did you mean `ogm_ge`")


def test_new_writes_into_the_current_folder_under_the_name_of_the_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    status, printed = command_line(monkeypatch, capsys, "new", "my_method2")

    assert status == 0
    assert "cd modbalance-my-method2" in printed
    code = (tmp_path / "modbalance-my-method2" / "modbalance_my_method2" / "__init__.py").read_text()
    assert "class MyMethod2(WindowedMethod):" in code
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in written if "$" in text]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("2fast", "Found '2fast': pass one such as my-method"),
        ("my method", "Found 'my method': pass one such as my-method"),
        ("../up", "Found '../up': pass one such as my-method"),
        ("lambda", "Found 'lambda': pass one such as my-method"),
        ("OGM-GE", "Found 'ogm_ge', which is installed: pass another one"),
        ("none", "Found 'none', which is installed"),
    ],
)
def test_new_refuses_names_that_are_none_or_taken(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = command_line(monkeypatch, capsys, "new", name, "--folder", str(tmp_path / "out"))

    assert status == 2
    assert message in printed
    assert not [*tmp_path.iterdir()]


def test_new_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")

    status, printed = command_line(monkeypatch, capsys, "new", "my-method", "--folder", str(tmp_path))

    assert status == 2
    assert "should not exist, or be empty. Found" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
