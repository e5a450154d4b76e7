"""The example plugin, installed into a folder of its own, is a method like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import modbalance
from modbalance.testing import rules

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[2] / "docs" / "example-plugin"

# Scores 0.8 and 0.2: a is slowed down to (0.2 / 0.8) ** 0.5 = 0.5, b keeps its gradient of 1.
USE = """
import torch
from torch import nn
from modbalance import BalancedOptimizer, list_methods

assert "modbalance_example" not in __import__("sys").modules
weights = {name: nn.Parameter(torch.zeros(1)) for name in ("a", "b")}
groups = [{"params": [weight], "modality": name} for name, weight in weights.items()]
optimizer = BalancedOptimizer(torch.optim.SGD(groups, lr=1.0), method="inverse_score", gamma=0.5)
criterion = optimizer.criterion(lambda logits, target: logits.mean())
logits = torch.stack([weights["a"] + weights["b"]] * 2, 1)
given = {name: torch.tensor([[p, 1 - p]]).log() for name, p in {"a": 0.8, "b": 0.2}.items()}
criterion(logits, torch.tensor([0]), unimodal_logits=given).backward()
optimizer.step()
found = {each.name: each for each in list_methods()}["inverse_score"]
print(found.distribution, found.version, found.problem)
for name in ("a", "b"):
    print(name, round(optimizer.metrics()["inverse_score/coefficient/" + name], 6), round(weights[name].item(), 6))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the distribution from its source and return the folder."""
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-input", "--disable-pip-version-check"]
    _run("-m", "pip", "install", *options, "--target", str(target), str(SOURCE))
    return target


def _run(*arguments: str, path: Path | None = None) -> str:
    # The modbalance under test, whichever one is installed.
    paths = os.pathsep.join([str(path or ""), str(Path(modbalance.__file__).parents[1])])
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=path or SOURCE, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_acts_by_its_name(installed: Path) -> None:
    lines = _run("-W", "error", "-c", USE, path=installed).splitlines()

    assert lines == ["modbalance-example 0.1.0 None", "a 0.5 -0.5", "b 1.0 -1.0"]


def test_the_command_line_lists_it(installed: Path) -> None:
    row = next(
        line
        for line in _run("-m", "modbalance", "methods", "--no-cost", path=installed).splitlines()
        if "inverse_score" in line
    )

    assert "modbalance-example 0.1.0" in row
    assert "Slows down the encoders" in row


def test_its_own_tests_pass(installed: Path) -> None:
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(SOURCE), "-c", os.devnull]
    out = _run("-B", "-m", "pytest", *options, str(SOURCE / "tests"), path=installed)

    assert f"{4 + 2 * len(rules())} passed" in out


def test_its_code_block_runs(installed: Path) -> None:
    blocks = (SOURCE / "README.md").read_text().split("```py\n")[1:]

    assert len(blocks) == 1
    assert "inverse_score/coefficient/audio" in _run("-W", "error", "-c", blocks[0].split("```")[0], path=installed)


def test_the_distribution_holds_its_package_and_types(installed: Path) -> None:
    assert {path.name for path in installed.iterdir()} == {"modbalance_example", "modbalance_example-0.1.0.dist-info"}
    assert (installed / "modbalance_example" / "py.typed").is_file()
