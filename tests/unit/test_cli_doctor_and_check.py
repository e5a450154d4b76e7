"""`modbalance doctor` and `check`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from modbalance import Method, list_methods
from modbalance._cli.doctor import bad_pairs
from modbalance.cli import main
from modbalance.testing import Check, RuleError, checks_for
from support.plugin_distributions import Add

VISION = {"torchvision": ["numpy", "torch (==2.11.0)"], "torchaudio": []}


def problems(torch: str, torchvision: str = "0.26.0", torchaudio: str = "2.11.0") -> list[str]:
    versions = {"torch": torch, "torchvision": torchvision, "torchaudio": torchaudio}
    return [f"{each['problem']} {each['source']}" for each in bad_pairs(versions, VISION)]


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        (("2.12.0",), "torchvision 0.26.0 requires torch 2.11.0. Found torch 2.12.0"),
        (("2.11.0", "0.26.0", "2.10.0"), "torchaudio 2.10.0 is of another release"),
        (("2.11.0+cpu", "0.26.0+cu128", "2.11.0+cpu"), "torchvision 0.26.0+cu128 is built for another device"),
        (("2.11.0+cpu", "0.26.0+cpu", "2.11.0+cu128"), "torchaudio 2.11.0+cu128 is built for another device"),
        (("2.11.0+cpu", "0.26.0", "2.11.0+cpu"), "torchvision 0.26.0 names no build, as on PyPI"),
        (("2.11.0+cpu", "0.26.0+cpu", "2.11.0"), "torchaudio 2.11.0 names no build, as on PyPI"),
    ],
)
def test_versions_at_odds_are_named_with_a_source(
    versions: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (found,) = problems(*versions)
    assert words in found
    assert "https://" in found or "metadata of" in found


def test_versions_that_go_together_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert problems("2.11.0+cpu", "0.26.0", "2.11.0") == [], "there, PyPI has builds for the CPU"
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert problems("2.11.0+cpu", "0.26.0+cpu", "2.11.0+cpu") == []
    assert bad_pairs({"torch": "2.12.1", "torchaudio": "2.11.0"}, {}) == [], "from 2.11 on, later torch too"
    assert bad_pairs({"torchvision": "0.26.0"}, VISION) == []


def test_doctor_names_a_plugin_that_cannot_be_loaded(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    add("modbalance-broken", "raise RuntimeError('no such library')")

    assert main(["doctor", "--json"]) == 1

    found = json.loads(capsys.readouterr().out)
    assert found["problems"][0]["problem"].startswith("method made of modbalance-broken 1.2: ")
    assert "RuntimeError: no such library" in found["problems"][0]["problem"]
    assert found["versions"]["torch"]
    assert found["devices"][0].startswith("cpu")
    assert main(["doctor"]) == 1
    assert "1 problem found." in capsys.readouterr().out


def few_checks(method: type[Method], *, options: dict[str, object], processes: bool = True) -> list[Check]:
    return checks_for(method, options=options, processes=processes)[:2]


def test_check_of_a_method_that_keeps_the_rules(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("modbalance._cli.check.checks_for", few_checks)

    assert main(["check", "ogm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert [rule["kept"] for rule in found["methods"][0]["rules"]] == [True, True]
    assert main(["check", "ModBalance"]) == 0
    ours = [each for each in list_methods() if each.distribution == "modbalance"]
    assert f"0 of {2 * len(ours)} rules are broken" in capsys.readouterr().out, "all methods of the distribution"


def test_check_of_a_method_that_breaks_a_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(check: Check) -> None:
        raise RuleError("one thing", "another", "change it")

    run: Callable[[Check], None] = broken
    monkeypatch.setattr("modbalance._cli.check.checks_for", few_checks)
    monkeypatch.setattr(Check, "__call__", run)

    assert main(["check", "ogm"]) == 1

    printed = capsys.readouterr().out
    assert "expected: one thing" in printed
    assert "fix: change it" in printed
    assert "2 of 2 rules are broken" in printed


def test_check_of_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "ogmm"]) == 2
    assert "Found 'ogmm'. Did you mean `ogm`" in capsys.readouterr().err


def test_check_of_the_baseline_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "none"]) == 2
    assert "Found 'none', the baseline" in capsys.readouterr().err


def test_options_of_a_check_reach_their_method(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    def noted(method: type[Method], *, options: dict[str, object], processes: bool) -> list[Check]:
        seen[method.name] = options
        return []

    monkeypatch.setattr("modbalance._cli.check.checks_for", noted)

    assert main(["check", "mses", "--option", "patience=0", "--option", "freeze=hard"]) == 0
    assert seen == {"mses": {"patience": 0, "freeze": "hard"}}
    assert main(["check", "modbalance", "--option", "mses.patience=0", "--option", "mslr.memory=1"]) == 0
    assert (seen["mses"], seen["mslr"], seen["ogm"]) == ({"patience": 0}, {"memory": 1}, {})
    capsys.readouterr()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("patience", "NAME=VALUE or METHOD.NAME=VALUE. Found 'patience'"),
        ("mses.patience=0", "should name a method that is checked. Found 'mses'"),
        ("alfa=0", "Did you mean `alpha`"),
    ],
)
def test_a_wrong_option_of_a_check_is_named(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "ogm", "--option", option]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
