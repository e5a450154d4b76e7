"""The tests of a module or method are found by its name: tests/unit mirrors modbalance, tests/plugins the methods."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = sorted(path.stem for path in (ROOT / "modbalance").glob("[!_]*.py"))
DISTRIBUTIONS = sorted(
    {*tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["modbalance"].values()}
)

ELSEWHERE = {
    "distributed_checkpoint": "distributed/test_distributed_checkpoints.py",
    "context": "unit/model/test_forward.py",
    "gradients": "plugins/test_ogm_ge.py",
    "loaders": "plugins/test_relearning.py",
    "sharding": "distributed/test_sharded_methods.py",
}
"""Modules without a file of their own in tests/unit, and the file where they are tested."""


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_has_its_file_of_tests(module: str) -> None:
    own = [*(ROOT / "tests" / "unit").glob(f"test_{module}.py"), *(ROOT / "tests" / "unit").glob(f"test_{module}_*.py")]

    assert own or (ROOT / "tests" / ELSEWHERE[module]).is_file()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_plugin_has_its_file_of_tests(distribution: str) -> None:
    assert (ROOT / "tests" / "plugins" / f"test_{distribution.removeprefix('modbalance_')}.py").is_file()
