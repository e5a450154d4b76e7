"""The command line `modbalance`: methods, `show`, `new`, errors and widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch

from modbalance import Batch, Method, hookimpl, list_methods
from modbalance._cli.methods import cost_record
from modbalance._measure import measure
from modbalance._plugins import Listing, load_method
from modbalance.cli import COMMANDS, main
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

    status, printed = command_line(monkeypatch, capsys, "list", "--no-cost")

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


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run `modbalance ARGUMENTS --json`; return the one document on stdout."""
    main([*arguments, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_methods_as_json_have_source_and_measured_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = [each for each in list_methods() if each.name in ("mses", "ogm_ge")]
    monkeypatch.setattr("modbalance._cli.methods.list_methods", lambda: only)

    found = {each["name"]: each for each in document(capsys, "methods")["methods"]}

    assert found["ogm_ge"]["paper"].endswith("CVPR 2022")
    assert found["ogm_ge"]["page"] == "docs/methods/ogm_ge.md"
    assert found["ogm_ge"]["touches"] == ["gradients of encoders", "gradients"]
    assert found["ogm_ge"]["needs"] == ["target", "unimodal_logits"]
    cost = found["ogm_ge"]["cost"]
    assert (cost["encoder_passes"], cost["host_reads"], cost["epoch_passes"]) == (1, 0, 0)
    assert 20 < cost["operations_added"] < 80
    assert found["mses"]["cost"]["epoch_passes"] == 2, "training and validation data, once each"


@pytest.mark.slow
@pytest.mark.parametrize("listing", list_methods(), ids=lambda listing: listing.name)
def test_every_installed_method_has_a_measured_cost_without_reads_in_a_step(listing: Listing) -> None:
    assert listing.method is not None
    record = cost_record(listing.method)
    assert record["cost_problem"] is None
    cost = record["cost"]
    assert cost["host_reads"] == 0
    assert cost["encoder_passes"] >= 1
    # One backward of each encoder, and those of a term's gradients or of masked passes.
    assert cost["encoder_backwards"] >= 1
    assert cost["operations_added"] > 0 or listing.name == "relearning", "it acts between epochs alone"


def test_backward_passes_are_those_of_the_method() -> None:
    """MMPareto takes two gradients of each encoder behind one forward, which a user of the list should see."""
    cost = measure(load_method("mmpareto"))
    assert (cost.encoder_passes, cost.encoder_backwards) == (1, 2)


def test_a_method_that_fails_in_the_measurement_is_listed_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = [each for each in list_methods() if each.name == "ogm"]
    monkeypatch.setattr("modbalance._cli.methods.list_methods", lambda: only)
    monkeypatch.setattr("modbalance._cli.methods.measure", lambda method: 1 / 0)

    found = document(capsys, "methods")["methods"][0]

    assert found["cost"] is None
    assert found["cost_problem"] == "ZeroDivisionError: division by zero"


def test_the_measurement_sees_reads_passes_and_operations() -> None:
    @attrs.define(eq=False, kw_only=True)
    class Costly(Method):
        name: ClassVar[str] = "costly"

        @hookimpl
        def modbalance_observe(self, batch: Batch) -> None:
            model: Any = batch.run.model
            model.encoders["left"](torch.zeros(6, 1, 5, 5))
            batch.logits.sum().item()

    cost = measure(Costly)

    assert cost.host_reads == 1
    assert cost.encoder_passes == 1.5, "one of two encoders runs twice"
    assert cost.operations_added > 3


def test_show_as_json_marks_where_paper_and_code_differ(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "show", "ogm_ge")

    options: dict[str, dict[str, object]] = found["options"]
    assert found["page"] == "docs/methods/ogm_ge.md"
    assert options["param_filter"]["differs"] is True
    assert options["alpha"] == {
        "official": "0.8",
        "paper": "0.8",
        "differs": False,
        "meaning": options["alpha"]["meaning"],
    }


def test_new_as_json_names_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "new", "my-method", "--folder", str(tmp_path / "out"))

    assert found["folder"] == str(tmp_path / "out")
    assert "pyproject.toml" in found["files"]


def test_every_command_has_help_with_exit_statuses_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([command.name, "--help"])
        printed = capsys.readouterr().out
        assert stopped.value.code == 0
        assert "--json" in printed
        assert "Exit status" in printed


@pytest.mark.parametrize("arguments", [["methods", "--no-cost"], ["show", "ogm_ge"], ["doctor"]])
def test_tables_fit_a_narrow_terminal(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    main(arguments)

    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" ")]
    assert rows
    assert max(map(len, rows)) <= 60


def test_an_interruption_has_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modbalance._cli.methods.list_methods", interrupt)
    assert main(["methods"]) == 130
