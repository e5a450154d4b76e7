"""The command line `modbalance`: `list` and `show`."""

from __future__ import annotations

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
