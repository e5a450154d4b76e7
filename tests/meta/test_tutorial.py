"""The tutorial holds from its first line to its last: its files are written, its commands run, its method is right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modbalance
from modbalance.testing import rules

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
PART = re.compile(r'^```(?:\w+ title="(?P<file>[^"]+)"|(?P<shell>sh))\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
INSTALL = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one as the value of `build_isolation`
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
}


@pytest.mark.slow
def test_the_tutorial_runs_from_start_to_end(tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path
    paths = os.pathsep.join([str(site), str(Path(modbalance.__file__).parents[1])])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PYTHONPATH": paths, "PATH": path, "PIP_TARGET": str(site), "NO_COLOR": "1", "COLUMNS": "120"}
    outputs = []
    for part in PART.finditer(PAGE.read_text(encoding="utf-8")):
        if part["file"]:
            (folder / part["file"]).write_text(part["text"], encoding="utf-8")
            continue
        done = subprocess.run(
            ["bash", "-euc", part["text"] + "pwd > " + str(tmp_path / "folder")],
            env=os.environ | INSTALL | settings,
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=120,
        )
        assert done.returncode == 0, part["text"] + done.stdout + done.stderr
        folder = Path((tmp_path / "folder").read_text().strip())
        outputs.append(done.stdout)

    written, tested, checked, used = outputs
    assert "Wrote a working method to modbalance-cml" in written
    assert f"{2 * len(rules()) + 2} passed" in tested
    assert checked == "every rule is kept\n"
    shares = {line.split()[0]: re.findall(r"([\d.]+) %", line) for line in used.splitlines()[-2:]}
    assert shares.keys() == {"none", "cml"}
    assert sum(map(float, shares["cml"])) < sum(map(float, shares["none"]))
