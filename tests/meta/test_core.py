"""The core stands in layers without cycles, and its public surface is declared and is all that plugins use."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import modbalance
from modbalance import Batch, EpochData, Run, Step, list_methods

ROOT = Path(__file__).parents[2]
CORE = ROOT / "modbalance"
LAYERS = (
    ("errors", "_model.purity", "_model.recomputed"),
    ("sharding",),
    (
        *("method", "gradients", "scores", "_ranks", "_in_place"),
        *("_model.forward", "_model.graphs", "_model.compiled", "_model.modes"),
    ),
    ("_reporting", "_joint", "_nested", "_scratch", "_clip", "_model.reentrant", "_model.structure"),
    ("_invariance", "_decay", "_steps", "_model.ownership", "_model.watch"),
    ("_update", "_model.rerun"),
    ("_model.unimodal",),
    ("_training",),
    ("_terms", "shadow"),
    ("context",),
    ("hookspecs",),
    ("_plugins", "_hook_results", "auxiliary", "coalitions", "loaders", "pooling", "results"),
    (*(f"diagnosis._{of}" for of in ("advice", "alone", "picture", "probe", "shapley", "task", "verdict")),),
    ("diagnosis._report", "diagnosis._subject"),
    ("diagnosis._gradients", "diagnosis._samples"),
    ("diagnosis._diagnose",),
    ("diagnosis",),
    ("_warnings",),
    ("_lifecycle",),
    ("_checkpoint", "_wrapper", "criterion"),
    ("_uneven",),
    ("optimizer",),
    ("distributed_checkpoint",),
    ("_epochs", "accelerate", "telemetry"),
    ("lightning", "transformers"),
    ("__init__", "_new", "runs"),
    ("testing._models", "testing._report", "testing._processes"),
    ("testing._case",),
    ("testing._rules",),
    (*(f"testing._rules_{of}" for of in ("effect", "execution", "model", "options", "state", "values")),),
    ("testing._checks",),
    ("testing",),
    ("_measure",),
    ("_cli", "_cli.command", "_cli.facts"),
    (*(f"_cli.{of}" for of in ("check", "compare", "doctor", "methods", "new", "plot", "recipe", "show")),),
    ("cli",),
    ("__main__",),
)
"""Modules of the core, lowest layer first; a module imports those of lower layers alone."""
PUBLIC = {
    *("accelerate", "auxiliary", "cli", "coalitions", "context", "criterion", "diagnosis"),
    *("distributed_checkpoint", "errors"),
    "gradients",
    *(
        "hookspecs",
        "lightning",
        "loaders",
        "method",
        "optimizer",
        "pooling",
        "results",
        "runs",
        "scores",
        "shadow",
        "sharding",
        "telemetry",
        "testing",
        "transformers",
    ),
}
METHODS = [listing.name for listing in list_methods()]
PLUGINS = sorted([*ROOT.glob("plugins/**/*.py"), *ROOT.glob("docs/example-plugin/modbalance_example/*.py")])
ARGUMENTS = {"run": Run, "batch": Batch, "step": Step, "data": EpochData}


def _module(file: Path) -> str:
    dotted = ".".join(file.relative_to(CORE).with_suffix("").parts)
    return dotted.removesuffix(".__init__") if dotted != "__init__" else dotted


FILES = {_module(file): file for file in sorted(CORE.rglob("*.py"))}


def _imported(file: Path) -> Iterator[str]:
    """Yield the modules of the core that a file imports, for type checkers alone or in a function, too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "modbalance":
            package = node.module.partition(".")[2]
            for alias in node.names:
                dotted = f"{package}.{alias.name}" if package else alias.name
                yield dotted if dotted in FILES else package or "__init__"
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] or "__init__" for alias in node.names if _is_core(alias.name))


def _is_core(name: str) -> bool:
    return name.split(".")[0] == "modbalance"


# Layers


def test_every_module_has_a_layer() -> None:
    assert sorted(name for layer in LAYERS for name in layer) == sorted(name for name in FILES if name != "_model")


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_a_module_imports_lower_layers_alone(number: int) -> None:
    below = {name for layer in LAYERS[:number] for name in layer}
    upwards = {name: sorted({*_imported(FILES[name])} - below) for name in LAYERS[number]}

    assert {name: above for name, above in upwards.items() if above} == {}


def test_the_test_of_layers_sees_imports_of_all_kinds(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import modbalance.cli\nfrom modbalance import gradients, Method\n"
        "if TYPE_CHECKING:\n    from modbalance._model import watch\ndef f():\n    from modbalance.context import Run\n"
    )

    assert [*_imported(file)] == ["cli", "gradients", "__init__", "_model.watch", "context"]


# Public surface


def test_a_module_without_underscore_is_public_and_declares_its_names() -> None:
    public = {name for name in FILES if not any(part.startswith("_") for part in name.split("."))}

    assert public == PUBLIC
    for name in PUBLIC:
        module = importlib.import_module(f"modbalance.{name}")
        assert module.__all__
        assert [each for each in module.__all__ if not hasattr(module, each)] == []


def test_the_package_declares_its_names() -> None:
    assert [name for name in modbalance.__all__ if not hasattr(modbalance, name)] == []
    assert sorted(modbalance.__all__) == modbalance.__all__
    assert all(not name.startswith("_") for name in modbalance.__all__)


@pytest.mark.parametrize("method", METHODS)
def test_the_core_names_no_method(method: str) -> None:
    word = re.compile(rf"\b{method.replace('_', '[_-]?')}\b", re.IGNORECASE)

    assert {name: found for name, file in FILES.items() if (found := word.findall(file.read_text()))} == {}


# The boundary for plugins


def _public_attributes(cls: type) -> set[str]:
    """Return the public methods and properties of a class, and the fields of its docstring's list of attributes."""
    listed = re.findall(r"^    (\w+): ", (inspect.getdoc(cls) or "").partition("Attributes:")[2], re.MULTILINE)
    return {name for name in vars(cls) if not name.startswith("_") and _is_member(cls, name)} | {*listed}


def _is_member(cls: type, name: str) -> bool:
    value = vars(cls)[name]
    return callable(value) or isinstance(value, property)


def _foreign_imports(tree: ast.Module, own: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_core(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("modbalance"):
            if node.module.split(".")[0] == own:
                continue
            module = importlib.import_module(node.module)
            allowed = node.module == "modbalance" or node.module.removeprefix("modbalance.") in PUBLIC
            names = getattr(module, "__all__", ()) if allowed else ()
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name not in names)


def _foreign_attributes(tree: ast.Module) -> Iterator[str]:
    """Yield attributes of the arguments of hooks, and of modules of the core, that are not public."""
    modules = {
        alias.asname or alias.name: getattr(modbalance, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "modbalance"
        for alias in node.names
        if isinstance(getattr(modbalance, alias.name, None), ModuleType)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        if (owner in ARGUMENTS and node.attr not in _public_attributes(ARGUMENTS[owner])) or (
            isinstance(node.value, ast.Name) and owner in modules and node.attr not in modules[owner].__all__
        ):
            yield f"{owner}.{node.attr}"


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_plugin_uses_the_public_surface_alone(file: Path) -> None:
    tree = ast.parse(file.read_text())

    assert [*_foreign_imports(tree, file.parent.name)] == []
    assert [*_foreign_attributes(tree)] == []


def test_the_test_of_the_boundary_sees_what_is_not_public() -> None:
    tree = ast.parse(
        "from modbalance import Run, gradients\nfrom modbalance._ranks import Ranks\n"
        "from modbalance.context import Training\n"
        "def hook(run, batch):\n    run._training; batch.run.topology; batch.forward; gradients.torch; run.epoch\n"
    )

    assert [*_foreign_imports(tree, "mine")] == ["modbalance._ranks.Ranks", "modbalance.context.Training"]
    assert {*_foreign_attributes(tree)} == {"run._training", "run.topology", "batch.forward", "gradients.torch"}


def test_arguments_of_hooks_have_the_attributes_that_are_listed() -> None:
    assert {"modalities", "parameters", "log"} <= _public_attributes(Run)
    assert {"features", "score", "cache"} <= _public_attributes(Batch)
    assert "forward" not in _public_attributes(Batch)
    assert {"stats", "parameters"} <= _public_attributes(Step)
    assert _public_attributes(EpochData) == {"train", "val", "metrics", "forward"}
