"""Each check of `modbalance.testing` catches a method that breaks its rule, and says what to do."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from modbalance import ConfigError, Method, Run, hookimpl
from modbalance.testing import (
    Check,
    ConformanceError,
    RuleError,
    SmallModel,
    check_method,
    checks_for,
    parametrize_with_checks,
    rules,
)
from modbalance.testing._rules import RULES
from support.broken_methods import BROKEN, FirstMicroBatch, ForTwo, Idle, ReadsAnItem, Sound, defined

pytestmark = pytest.mark.slow


SCRIPT = """
from modbalance.testing import checks_for
for check in checks_for("ogm"):
    if check.name == "equal_ranks":
        check()
"""


def check_of(method: type[Method], rule: str) -> Check:
    (check,) = [each for each in checks_for(method) if each.name == rule]
    return check


def test_every_rule_has_a_broken_method() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(rules())


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
@pytest.mark.parametrize(("rule", "method", "found"), [pytest.param(*each, id=each[1].__name__) for each in BROKEN])
def test_a_broken_method_is_caught(rule: str, method: type[Method], found: str) -> None:
    with pytest.raises(RuleError) as caught:
        check_of(method, rule)()

    assert re.search(found, caught.value.found)
    assert caught.value.expected
    assert caught.value.fix


def test_a_sound_method_passes() -> None:
    check_method(Sound)


class Deep(SmallModel):
    """A model with a hidden layer in the head."""

    def head(self, size: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, 5), nn.Tanh(), nn.Linear(5, 3))


@parametrize_with_checks([(Sound, {"gamma": 0.5})], model=Deep, processes=False)
def test_a_sound_method_passes_with_options_and_another_model(check: Check) -> None:
    check()


def test_one_error_reports_all_rules_that_are_broken() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_method(ReadsAnItem, options={"gamma": 0.5}, processes=False)

    assert [*caught.value.failures] == ["no_host_read"]
    lines = str(caught.value).splitlines()
    assert lines[0] == f"Method `sound` with {{'gamma': 0.5}} breaks 1 of {len(rules()) - 1} rules:"
    assert lines[2] == "1. no_host_read: A step reads no tensor on the host, from the second epoch on."
    assert [line.split(":")[0] for line in lines[3:6]] == ["   expected", "   found", "   fix"]


def test_an_error_in_a_training_names_its_place() -> None:
    with pytest.raises(
        RuleError, match=r"ValueError: too many values(?s:.*)\n  broken_methods.py:\d+ in modbalance_co"
    ):
        check_of(ForTwo, "number_of_modalities")()


@defined
class PerMicroBatch(FirstMicroBatch):
    """Declares what it does not keep."""

    def exemptions(self) -> Mapping[str, str]:
        return {"accumulation": "it looks at the first micro-batch alone"}


@defined
class TooModest(Sound):
    """Declares not to keep a rule that it keeps."""

    def exemptions(self) -> Mapping[str, str]:
        return {"accumulation": "of modesty"}


@defined
class Misspelt(Sound):
    """Declares a rule that there is not."""

    def exemptions(self) -> Mapping[str, str]:
        return {"acumulation": "of haste"}


def test_a_declared_exemption_is_expected() -> None:
    check_of(PerMicroBatch, "accumulation")()


def test_an_exemption_without_need_is_reported() -> None:
    with pytest.raises(RuleError, match="declares: of modesty\nfound: that it holds\nfix: take 'accumulation' out of"):
        check_of(TooModest, "accumulation")()


def test_an_exemption_from_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"names 'acumulation'. Did you mean `accumulation`"):
        checks_for(Misspelt)


def test_rules_that_start_processes_can_be_left_out() -> None:
    left_out = {check.name for check in checks_for(Sound)} - {
        check.name for check in checks_for(Sound, processes=False)
    }

    assert left_out == {"equal_ranks"}


def test_a_method_that_processes_cannot_import_is_told_the_ways_out() -> None:
    @defined
    class Local(Sound):
        """Stands in a function."""

    with pytest.raises(RuleError, match=r"Local(?s:.*)fix: define the method(?s:.*)`processes=False`"):
        check_of(Local, "equal_ranks")()


def test_a_script_without_a_guard_is_told_the_ways_out(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)

    assert done.returncode == 1
    assert "found: no result from ranks [0, 1]" in done.stderr
    assert 'put the call of the checks under `if __name__ == "__main__":`' in done.stderr


@defined
class FailsOnRanks(Sound):
    """Has no second rank in mind."""

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        if run.rank:
            raise ValueError("rank 1 of all")


def test_an_error_on_a_rank_is_reported_with_its_traceback() -> None:
    with pytest.raises(RuleError, match=r"rank 1:(?s:.*)modbalance_setup(?s:.*)ValueError: rank 1 of all"):
        check_of(FailsOnRanks, "equal_ranks")()


def test_a_check_shows_method_options_and_rule() -> None:
    check = next(check for check in checks_for(Sound, options={"gamma": 2.0}) if check.name == "acts")

    assert repr(check) == "sound(gamma=2.0)-acts"
    assert check.rule == "The method changes the training of the small model."
    assert check.reason.startswith("Where it does not, the other rules say nothing.")


def test_every_rule_is_a_sentence_with_a_reason() -> None:
    for check in checks_for(Idle):
        assert re.fullmatch(r"\S.*\.", check.rule), check.name
        assert len(check.reason) > 20, check.name


@pytest.mark.filterwarnings("error")
def test_a_warning_of_torch_about_the_interpreter_breaks_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(model: nn.Module, **options: object) -> nn.Module:
        warnings.warn("Guards may run slower on Python 3.13.0. Consider upgrading.", RuntimeWarning, stacklevel=1)
        return model

    monkeypatch.setattr("torch.compile", compiled)

    check_of(Sound, "compilation")()


def test_a_check_computes_with_one_thread_and_puts_their_number_back(
    monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    seen: list[int] = []
    monkeypatch.setitem(RULES, "acts", lambda case: seen.append(torch.get_num_threads()))

    check_of(Sound, "acts")()

    assert (seen, torch.get_num_threads()) == ([1], 2)


def test_an_installed_method_is_found_by_name_and_a_wrong_option_refused() -> None:
    assert {check.case.method.name for check in checks_for("ogm")} == {"ogm"}
    with pytest.raises(ConfigError, match="has no option `alfa`"):
        checks_for("ogm", options={"alfa": 1})


def test_the_checks_import_no_pytest() -> None:
    code = "import sys, modbalance.testing; raise SystemExit('pytest' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
