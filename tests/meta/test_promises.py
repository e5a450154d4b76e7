"""Structure of the repository: entry points, plugin folders, hooks, packaging."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn

from modbalance import Method, hookimpl, hookspecs
from modbalance._new import FILES
from support.training import balanced, batches, multimodal

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY_POINTS: dict[str, str] = PROJECT["project"]["entry-points"]["modbalance"]
HOOKS = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("modbalance_")]
LIBRARY = sorted([*ROOT.glob("modbalance/**/*.py"), *ROOT.glob("plugins/**/*.py")])


def _imports(file: Path) -> set[str]:
    """Return the top-level names of all modules that a file imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


# Discovery


def test_installed_entry_points_are_those_of_the_project() -> None:
    installed = {
        entry.name: entry.value
        for entry in entry_points(group="modbalance")
        if entry.dist is not None and entry.dist.name == "modbalance"
    }

    assert installed == ENTRY_POINTS, "entry points are read at installation: run `pip install -e .` again"


def test_every_plugin_folder_is_a_typed_package_with_an_entry_point() -> None:
    folders = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir() and path.name != "__pycache__"}

    assert folders == set(ENTRY_POINTS.values())
    for name in folders:
        assert re.fullmatch(r"modbalance_[a-z0-9_]+", name)
        assert (ROOT / "plugins" / name / "__init__.py").is_file()
        assert (ROOT / "plugins" / name / "py.typed").is_file()
    assert not (ROOT / "plugins" / "__init__.py").exists()


@pytest.mark.parametrize("method", ENTRY_POINTS)
def test_every_method_has_a_page(method: str) -> None:
    page = ROOT / "docs" / "methods" / f"{ENTRY_POINTS[method].removeprefix('modbalance_')}.md"

    assert page.is_file()
    assert f"`{method}`" in page.read_text()


# Hooks


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_typed_and_documented(hook: str) -> None:
    function = getattr(hookspecs, hook)
    signature = inspect.signature(function)

    assert signature.return_annotation is not inspect.Signature.empty
    assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
    assert len(inspect.getdoc(function) or "") > 40


@attrs.define(eq=False, kw_only=True)
class Recorder(Method):
    """Implements every hook, changes nothing, and notes what fired."""

    name: ClassVar[str] = "recorder"
    acts_in_eval = True

    fired: list[str] = attrs.field(factory=list)


def _recording(hook: str) -> Any:
    """Return an implementation of ``hook`` that notes its name; pluggy looks at the names of arguments."""
    result = "{}" if hook in ("modbalance_observe", "modbalance_losses", "modbalance_coefficients") else "None"
    arguments = ", ".join(["self", *inspect.signature(getattr(hookspecs, hook)).parameters])
    scope: dict[str, Any] = {}
    exec(f"def {hook}({arguments}):\n    self.fired.append('{hook}')\n    return {result}", scope)
    return hookimpl(scope[hook])


OF_METHODS = [name for name in vars(hookspecs) if name in HOOKS and name != "modbalance_methods"]
for _name in OF_METHODS:
    setattr(Recorder, _name, _recording(_name))


def test_hooks_fire_in_the_order_of_their_file() -> None:
    model = multimodal()
    fired: list[str] = []
    optimizer = balanced(model, Recorder(fired=fired))
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    setup, begin, epoch_start, *of_a_batch, coefficients, gradients, after_step, epoch_end = OF_METHODS
    of_a_step = [*of_a_batch, *of_a_batch, coefficients, gradients, after_step]

    for _ in range(2):
        for inputs, target in batches(model, 2):
            criterion(model(*inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.end_epoch()

    assert fired == [setup, begin, epoch_start, *of_a_step, *of_a_step, epoch_end]


def test_only_the_hook_for_logits_fires_in_evaluation() -> None:
    model = multimodal()
    fired: list[str] = []
    optimizer = balanced(model, Recorder(fired=fired))
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    fired.clear()
    inputs, target = batches(model, 1)[0]

    model.eval()
    criterion(model(*inputs), target)
    model.train()
    with torch.no_grad():
        criterion(model(*inputs), target)

    assert fired == ["modbalance_logits"] * 2


# Layers


def test_the_core_imports_no_plugin_and_no_recipe() -> None:
    forbidden = {*ENTRY_POINTS.values(), "plugins", "recipes", "recipe_common", "tests", "support"}

    assert len(LIBRARY) > 10
    for file in ROOT.glob("modbalance/**/*.py"):
        assert not _imports(file) & forbidden, file


def test_a_plugin_imports_the_core_and_no_other_plugin() -> None:
    for file in ROOT.glob("plugins/**/*.py"):
        own = file.relative_to(ROOT / "plugins").parts[0]
        assert not {name for name in _imports(file) if name.startswith("modbalance_")} - {own}, file


def test_nothing_imports_the_folder_of_plugins() -> None:
    files = [*LIBRARY, *ROOT.glob("recipes/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/**/*.py")]

    assert [file for file in files if "plugins" in _imports(file)] == []


# Packaging


@pytest.mark.slow
def test_a_wheel_holds_the_core_and_the_plugins_and_nothing_else(tmp_path: Path) -> None:
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = next(tmp_path.glob("*.whl"))

    names = zipfile.ZipFile(wheel).namelist()

    version = PROJECT["project"]["version"]
    assert {name.split("/")[0] for name in names} == {
        "modbalance",
        *ENTRY_POINTS.values(),
        f"modbalance-{version}.dist-info",
    }
    assert {"modbalance/py.typed", *(f"{name}/py.typed" for name in ENTRY_POINTS.values())} <= set(names)
    others = {name for name in names if not name.endswith((".py", "py.typed")) and ".dist-info/" not in name}
    assert others == {f"modbalance/_template/{name}.txt" for name in FILES}  # of `modbalance new`


def test_the_version_is_said_once() -> None:
    import modbalance

    assert modbalance.__version__ == PROJECT["project"]["version"]
