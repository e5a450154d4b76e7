"""A newcomer writes, tests, installs and uses a method, by the tutorial from its first line to its last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modbalance.testing import rules
from support.fresh_environment import fresh_environment
from support.pages import ROOT

PART = re.compile(r'^```(?:\w+ title="(?P<file>[^"]+)"|(?P<shell>sh))\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two runs of all rules, one after the other
def test_the_tutorial_runs_from_start_to_end(tmp_path: Path, wheel: Path) -> None:
    environment = fresh_environment(tmp_path / "environment", wheel)
    folder = tmp_path / "work"
    folder.mkdir()
    outputs = []
    for part in PART.finditer((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")):
        if part["file"]:
            (folder / part["file"]).write_text(part["text"], encoding="utf-8")
            continue
        script = part["text"] + f"pwd > {tmp_path / 'folder'}"
        outputs.append(environment.run(script, folder))
        folder = Path((tmp_path / "folder").read_text().strip())

    written, tested, checked, used = outputs
    assert "Wrote a working method to modbalance-cml" in written
    assert f"{2 * len(rules()) + 2} passed" in tested
    assert checked == "every rule is kept\n"
    shares = {line.split()[0]: re.findall(r"([\d.]+) %", line) for line in used.splitlines()[-2:]}
    assert shares.keys() == {"none", "cml"}
    assert sum(map(float, shares["cml"])) < sum(map(float, shares["none"]))
    listed = environment.run("modbalance methods --no-cost", folder)
    assert re.search(r"^ cml +Adds a loss term .* modbalance-cml 0\.1\.0 *$", listed, re.MULTILINE)
