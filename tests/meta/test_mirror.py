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
    # Seen through what uses them: the plugin interface through methods, what is between epochs through Re-learning.
    "auxiliary": "plugins/test_cggm.py",
    "context": "unit/model/test_forward.py",
    "gradients": "plugins/test_ogm_ge.py",
    "loaders": "plugins/test_relearning.py",
    "records": "unit/model/test_forward.py",
    "results": "plugins/test_mslr.py",
    "run": "unit/model/test_structure.py",
    # Parts of the life of a step.
    "backward": "plugins/test_agm.py",
    "balancer": "unit/test_lifecycle.py",
    "modulation": "unit/test_lifecycle.py",
    "notices": "unit/test_lifecycle.py",
    "pending": "unit/test_lifecycle.py",
    # Parts of the plugin machinery and of the wrapper.
    "describe": "unit/test_optimizer_wrapper.py",
    "distributed": "distributed/test_two_ranks.py",
    "hooks": "unit/test_plugins.py",
    "registry": "unit/test_plugins.py",
    "telemetry": "behaviour/test_host_reads.py",
    "wrapper": "unit/test_optimizer_wrapper.py",
    # Views of the model.
    "capture": "behaviour/test_compile_and_amp.py",
    "layout": "unit/model/test_forward.py",
    "topology": "unit/model/test_structure.py",
    "unimodal": "unit/model/test_unimodal.py",
}
"""Modules without a file of their own in tests/unit, and the file where they are tested."""


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_has_its_file_of_tests(module: str) -> None:
    own = [*(ROOT / "tests" / "unit").glob(f"test_{module}.py"), *(ROOT / "tests" / "unit").glob(f"test_{module}_*.py")]

    assert own or (ROOT / "tests" / ELSEWHERE[module]).is_file()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_plugin_has_its_file_of_tests(distribution: str) -> None:
    assert (ROOT / "tests" / "plugins" / f"test_{distribution.removeprefix('modbalance_')}.py").is_file()
