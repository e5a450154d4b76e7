"""Settings are declared once: flags, checks and JSON follow from the declaration."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from attrs.exceptions import FrozenInstanceError

from modbalance import Method, option
from modbalance.method import integer
from recipe_common.arguments import positive_int
from recipe_common.errors import RecipeError
from recipe_common.settings.command_line import add_flags, parse, read
from recipe_common.settings.declaration import build, changed, flag, flags_of, flat, group
from recipe_common.settings.shared import MethodOption, RunSettings, Settings
from recipe_common.tasks.task import classification
from recipe_common.training import settings as settings_module
from recipe_common.training.settings import as_json, choose_methods, excluded_methods, from_json, options_of, resolve
from recipes.call import settings_of
from recipes.tiny_recipe import CLASSES, RECIPE, TinySettings, load


@attrs.frozen(kw_only=True)
class Inner:
    title: ClassVar[str] = "inside"

    size: int = flag(3, "of 100 %% of them", number=positive_int, metavar="PIXELS")
    places: tuple[Path, ...] = flag((), metavar="DIR")


@attrs.frozen(kw_only=True)
class Outer:
    is_good: bool = flag(True, "whether it is")
    inner: Inner = group(Inner)
    kind: str | None = flag(None, choices=("a", "b"))
    share: float = flag(0.5)


def test_flags_follow_from_the_declaration(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="x.py")
    add_flags(parser, Outer)
    given = read(parser, ["--no-is-good", "--places", "here", "there", "--kind", "b"])
    assert given == {"is_good": False, "places": (Path("here"), Path("there")), "kind": "b"}
    assert build(Outer, given) == Outer(is_good=False, inner=Inner(places=(Path("here"), Path("there"))), kind="b")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert "inside:" in text
    assert "--size PIXELS" in text
    assert "of 100 % of them" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, r"`--size` should be a whole number of at least 1. Found `0`"),
        ({"size": 2.0}, r"`--size` should be a whole number of at least 1. Found `2.0`"),
        ({"size": True}, r"`--size` should be a whole number of at least 1. Found `True`"),
        ({"is_good": 1}, r"`--is-good` should be true or false. Found `1`"),
        ({"is_good": None}, r"`--is-good` should be true or false. Found `None`"),
        ({"kind": "c"}, r"`--kind` should be one of a, b. Found `'c'`"),
        ({"share": "0.5"}, r"`--share` should be a number. Found `'0.5'`"),
        ({"places": ["here"]}, r"`--places` should be several values, each a path. Found `\['here'\]`"),
        ({"places": ("here",)}, r"`--places` should be several values, each a path. Found `\('here',\)`"),
    ],
    ids=str,
)
def test_values_of_another_type_or_out_of_bounds_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"{message}: give such a value"):
        build(Outer, values)


def test_settings_are_frozen_and_changed_by_name() -> None:
    settings = Outer()
    with pytest.raises(FrozenInstanceError):
        settings.share = 0.1  # type: ignore[misc]  # it is frozen
    other = changed(settings, size=7, share=1)
    assert flat(other) == {"is_good": True, "size": 7, "places": (), "kind": None, "share": 1}
    assert flat(settings)["size"] == 3
    with pytest.raises(TypeError, match="`Outer` has no sice"):
        changed(settings, sice=7)
    with pytest.raises(RecipeError, match="--size"):
        changed(settings, size=-7)


def test_a_name_is_declared_once() -> None:
    @attrs.frozen(kw_only=True)
    class Twice:
        lr: float = flag(0.1)

    with pytest.raises(TypeError, match="`Twice` declares lr, which is declared already"):
        flags_of(Settings, Twice)
    with pytest.raises(TypeError, match="lr"):
        attrs.evolve(RECIPE, settings=Twice)


@pytest.mark.parametrize("table", ["defaults", "synthetic_defaults"])
def test_a_misspelt_setting_of_a_recipe_is_an_error_at_its_import(table: str) -> None:
    changes: dict[str, Any] = {table: {"epoch": 3}}
    with pytest.raises(ValueError, match="Recipe `tiny` has no setting `epoch`"):
        attrs.evolve(RECIPE, **changes)
    with pytest.raises(ValueError, match="Recipe `tiny` has no setting `epoch`"):
        attrs.evolve(RECIPE, protocols={"official": {"epoch": 3}})


def test_a_value_of_a_recipe_that_its_setting_does_not_take_is_an_error_at_its_import() -> None:
    with pytest.raises(RecipeError, match=r"`--epochs` should be .*\. Found `0`"):
        attrs.evolve(RECIPE, defaults={"epochs": 0})
    with pytest.raises(RecipeError, match=r"`--select` should be .*\. Found `'train'`"):
        attrs.evolve(RECIPE, protocols={"official": {"select": "train"}})


def test_all_settings_go_through_json() -> None:
    given = ["--option", "ogm_ge.alpha=[1, 2]", "tie=none", "--methods", "none", "ogm_ge", "--milestones", "1", "2"]
    settings = settings_of(RECIPE, *given, "--data-root", "there", "--no-deterministic", "--lr", "1")
    content = json.loads(json.dumps(as_json(settings)))
    assert content["option"] == ["ogm_ge.alpha=[1, 2]", "tie=none"]
    assert from_json(RECIPE, content) == settings
    assert isinstance(settings, Settings)
    assert isinstance(settings.own, TinySettings)


@pytest.mark.parametrize("content", [{"lr": "fast"}, {"lr": -1.0}, {"milestones": 3}, {"plain": None}, {"amp": "int8"}])
def test_what_a_file_says_is_checked(content: dict[str, Any]) -> None:
    (name,) = content
    with pytest.raises(RecipeError, match=f"`--{name}` should be .*. Found"):
        from_json(RECIPE, content)
    with pytest.raises(RecipeError, match=f"`--{name}` should be .*. Found"):
        resolve({}, RECIPE, saved=content)


def test_what_is_given_is_a_setting() -> None:
    with pytest.raises(TypeError, match="Recipe `tiny` has no setting epoch"):
        resolve({"epoch": 3}, RECIPE)


def test_a_flag_comes_before_a_saved_value_that_is_wrong() -> None:
    assert resolve({"lr": 0.3}, RECIPE, saved={"lr": "fast"}).optimisation.lr == 0.3


def test_options_of_methods_are_literals_or_texts() -> None:
    given = [MethodOption(text) for text in ("alpha=0.5", "m.tie=none", "a.b.init={'audio': 1.5}", "text==")]
    assert [(each.method, each.name, each.value) for each in given] == [
        (None, "alpha", 0.5),
        ("m", "tie", "none"),
        ("a.b", "init", {"audio": 1.5}),
        (None, "text", "="),
    ]
    assert build(RunSettings, {"option": (given[0],)}).option == (given[0],)


def test_sub_commands_have_settings_of_their_own() -> None:
    @attrs.frozen(kw_only=True)
    class Command:
        root: Path = flag(metavar="DIR")
        workers: int = flag(1, number=positive_int)
        is_checked: bool = flag(False, is_one_way=True)

    def parsed(*arguments: str) -> Command:
        return parse(Command, "x.py", "Does it.", arguments, {"workers": 4})

    assert parsed("--root", "here") == Command(root=Path("here"), workers=4)
    assert parsed("--root", "here", "--is-checked", "--workers", "2") == Command(
        root=Path("here"), workers=2, is_checked=True
    )
    for refused in ([], ["--root", "here", "--no-is-checked"]):
        with pytest.raises(SystemExit):
            parsed(*refused)


@attrs.define(eq=False, kw_only=True)
class Theirs(Method):
    """A method of another distribution."""

    name: ClassVar[str] = "theirs"
    needs = frozenset({"model", "classes", "validation"})

    wait: int = option(20, integer(1), "epochs to wait", short=2)
    count: int = option(3, integer(1), "how often")


@pytest.fixture
def _their_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "installed_methods", lambda: {"theirs": Theirs})


@pytest.mark.usefixtures("_their_method")
def test_a_method_is_left_out_by_what_it_declares_to_need() -> None:
    settings = settings_of(RECIPE)
    data = load(settings)
    assert excluded_methods(settings, data) == {}
    task = attrs.evolve(classification(len(CLASSES)), lacks={"classes": "here are none", "accuracy": "nor that"})
    lacking = attrs.evolve(data, task=task)
    excluded = excluded_methods(settings, lacking)
    assert excluded == {"theirs": "it needs one class per sample, and here are none"}
    assert choose_methods(["all"], excluded) == (("none",), [f"left out: theirs: {excluded['theirs']}"])
    with pytest.raises(RecipeError, match=r"Found theirs \(it needs one class per sample, and here are none\)"):
        choose_methods(["theirs"], excluded)
    without = settings_of(RECIPE, "--no-validation", "--select", "test")
    reason = "samples that are held out to validate, and --no-validation leaves none"
    assert excluded_methods(without, data) == {"theirs": f"it needs {reason}"}
    assert excluded_methods(without, lacking)["theirs"].endswith(f"here are none; {reason}")
    named = attrs.evolve(lacking, excluded={"theirs": "its options do not fit"})
    assert excluded_methods(settings, named) == {"theirs": "its options do not fit"}


@pytest.mark.usefixtures("_their_method")
def test_short_values_of_options_count_on_synthetic_data() -> None:
    synthetic, real = settings_of(RECIPE), settings_of(RECIPE, "--data-root", "there")
    recipe = attrs.evolve(RECIPE, method_options={"theirs": {"wait": 7, "count": 1}})
    assert options_of("theirs", synthetic, recipe) == {"wait": 2, "count": 1}
    assert options_of("theirs", real, recipe) == {"wait": 7, "count": 1}
    recipe = attrs.evolve(recipe, synthetic_options={"theirs": {"wait": 4}})
    assert options_of("theirs", synthetic, recipe) == {"wait": 4, "count": 1}


def test_the_short_values_of_the_built_in_methods() -> None:
    settings = settings_of(RECIPE)
    assert options_of("relearning", settings, RECIPE) == {"period": 3, "count": 2}
    assert options_of("mses", settings, RECIPE) == {"patience": 3}
    assert options_of("none", settings, RECIPE) == {}
