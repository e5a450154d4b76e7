"""Methods are found through entry points, one at a time: what is broken elsewhere does no harm."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Generator
from typing import Any, ClassVar

import attrs
import pytest

from modbalance import Batch, Method, PluginConflictError, PluginLoadError, UnknownMethodError, hookimpl, list_methods
from modbalance._plugins import Listing, load_method, plugin_manager
from support.plugin_distributions import METHOD, Add
from support.training import assert_same, balanced, batches, multimodal, sgd, train


def listed() -> dict[str, Listing]:
    return {each.name: each for each in list_methods()}


def test_built_in_methods_are_found() -> None:
    found = listed()

    assert {"ogm", "ogm_ge"} <= found.keys()
    assert (found["ogm"].distribution, found["ogm"].problem) == ("modbalance", None)
    assert found["ogm_ge"].method is load_method("ogm_ge")
    assert load_method("ogm_ge").name == "ogm_ge"


def test_nothing_is_imported_before_it_is_named(add: Add) -> None:
    add("modbalance-lazy", METHOD.format(name="made"))

    balanced(multimodal(), "ogm")
    assert "modbalance_lazy" not in sys.modules

    assert load_method("made").__module__ == "modbalance_lazy"


def test_a_method_of_another_distribution_is_a_method_like_any(add: Add) -> None:
    add("modbalance-third", METHOD.format(name="made"))
    model, plain = multimodal(), multimodal()

    optimizer = balanced(model, "made")

    assert "BalancedOptimizer(made" in repr(optimizer)
    assert_same(train(model, optimizer, batches(model, 2)), train(plain, sgd(plain), batches(plain, 2)))
    entry = listed()["made"]
    assert (entry.distribution, entry.version, entry.problem) == ("modbalance-third", "1.2", None)
    assert entry.method is not None


def test_two_distributions_with_one_name_are_both_named(add: Add) -> None:
    add("modbalance-one", METHOD.format(name="made"))
    add("modbalance-two", METHOD.format(name="made"))

    words = (
        r"'made' should belong to one installed distribution.*modbalance-(one|two) 1.2.* and modbalance-.*uninstall one"
    )
    with pytest.raises(PluginConflictError, match=words) as caught:
        balanced(multimodal(), "made")

    assert "modbalance-one" in str(caught.value)
    assert "modbalance-two" in str(caught.value)
    assert [(each.distribution, each.method) for each in list_methods() if each.name == "made"] == [
        ("modbalance-two", None),
        ("modbalance-one", None),
    ]
    assert balanced(multimodal(), "ogm")


def test_another_distribution_cannot_replace_a_built_in_method(add: Add) -> None:
    add("modbalance-impostor", METHOD.format(name="ogm"), {"ogm": "modbalance_impostor"})

    with pytest.raises(PluginConflictError, match=r"'ogm'.*modbalance-impostor 1.2"):
        balanced(multimodal(), "ogm")
    assert "modbalance_impostor" not in sys.modules
    assert balanced(multimodal(), "ogm_ge")


def test_none_cannot_be_taken(add: Add) -> None:
    """`none` is the core itself; a plugin of that name would never be reached, and must not pass for available."""
    add("modbalance-none", METHOD.format(name="none"), {"none": "modbalance_none"})
    model, plain = multimodal(), multimodal()

    optimizer = balanced(model, "none")

    assert_same(train(model, optimizer, batches(model, 1)), train(plain, sgd(plain), batches(plain, 1)))
    assert listed()["none"].problem is not None


def test_one_distribution_that_is_found_twice_counts_once(add: Add) -> None:
    add("modbalance-third", METHOD.format(name="made"))
    add("modbalance-third", METHOD.format(name="made"))

    assert load_method("made").name == "made"
    assert len([each for each in list_methods() if each.name == "made"]) == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import a_module_that_is_missing", "ModuleNotFoundError: No module named 'a_module_that_is_missing'"),
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("def broken(:", "SyntaxError"),
    ],
    ids=["import", "runtime", "syntax"],
)
def test_a_plugin_that_cannot_be_imported_is_alone_with_it(add: Add, source: str, words: str) -> None:
    add("modbalance-broken", source)

    with pytest.raises(
        PluginLoadError, match=rf"'made' of modbalance-broken 1.2.*cannot be imported: {words}"
    ) as caught:
        balanced(multimodal(), "made")

    assert caught.value.__cause__ is not None
    assert "Other methods are not affected" in str(caught.value)
    assert balanced(multimodal(), "ogm")
    found = listed()
    assert words in str(found["made"].problem)
    assert found["made"].method is None
    assert found["ogm"].problem is None


CLASS = """
    from modbalance import Method, hookimpl

    class Made(Method):
        name = "made"

        {hook}

    @hookimpl
    def modbalance_methods():
        return [Made]
"""


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (
            "@hookimpl\n    def modbalance_observed(self, batch): ...",
            "unknown hook `modbalance_observed`.*`modbalance_observe`",
        ),
        ("@hookimpl\n    def modbalance_zzz(self): ...", "unknown hook `modbalance_zzz`. .*`modbalance_"),
        ("def modbalance_observe(self, batch): ...", "defines `modbalance_observe` without a marker: put `@hookimpl`"),
        ("@hookimpl\n    def modbalance_observe(self, batches): ...", "(?s)does not fit .*batches"),
        ("@hookimpl\n    def modbalance_setup(self, run, epoch): ...", "(?s)does not fit .*epoch"),
    ],
    ids=["near", "far", "unmarked", "argument", "argument of another hook"],
)
def test_a_hook_that_could_never_fire_is_refused(add: Add, hook: str, words: str) -> None:
    add("modbalance-third", textwrap.dedent(CLASS).format(hook=hook))

    with pytest.raises(PluginLoadError, match=words) as caught:
        balanced(multimodal(), "made")

    assert "made" in str(caught.value)
    assert listed()["made"].problem is not None
    assert balanced(multimodal(), "ogm")


def test_a_method_object_is_checked_like_an_installed_one() -> None:
    class Typo(Method):
        name = "typo"

        @hookimpl
        def modbalance_coefficient(self) -> None: ...

    with pytest.raises(
        PluginLoadError, match=r"'typo'.*`modbalance_coefficient`. Did you mean `modbalance_coefficients`"
    ):
        balanced(multimodal(), Typo())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (METHOD.format(name="other"), r"should offer a method named as its entry point, 'made'. Found \['other'\]"),
        ("x = 1", r"should offer a method named as its entry point, 'made'. Found \[\]"),
        ("def modbalance_methods(): return []", "defines `modbalance_methods` without a marker"),
        (
            "from modbalance import hookimpl\n@hookimpl\ndef modbalance_method(): return []",
            "unknown hook `modbalance_method`. Did you mean `modbalance_methods`",
        ),
        (
            "from modbalance import hookimpl\n@hookimpl\ndef modbalance_methods(): return [dict]",
            r"should return subclasses of modbalance.Method. Found <class 'dict'>",
        ),
        (
            "from modbalance import hookimpl, Method\n@hookimpl\ndef modbalance_methods(): return [Method()]",
            r"should return subclasses of modbalance.Method. Found .*Method",
        ),
        (
            "from modbalance import hookimpl\n@hookimpl\ndef modbalance_methods(): return 5",
            r"`modbalance_methods\(\)` of modbalance-third.*should return.*Found 5",
        ),
        (
            "from modbalance import hookimpl\n@hookimpl\ndef modbalance_methods(): raise ValueError('bad day')",
            "modbalance-third.*ValueError: bad day",
        ),
    ],
    ids=["other name", "no hook", "unmarked", "misspelt", "no method", "an object", "no list", "raises"],
)
def test_a_module_that_offers_no_such_method(add: Add, source: str, words: str) -> None:
    add("modbalance-third", source)

    with pytest.raises(PluginLoadError, match=words):
        balanced(multimodal(), "made")

    assert listed()["made"].problem is not None
    assert balanced(multimodal(), "ogm")


def test_an_entry_point_whose_module_is_missing(add: Add) -> None:
    add("modbalance-third", "", {"made": "modbalance_elsewhere"})

    with pytest.raises(PluginLoadError, match=r"\(modbalance_elsewhere\) cannot be imported: ModuleNotFoundError"):
        balanced(multimodal(), "made")


def test_an_unknown_name_suggests_those_of_other_distributions(add: Add) -> None:
    add("modbalance-third", METHOD.format(name="made"))

    with pytest.raises(UnknownMethodError, match=r"'maed'.*Did you mean.*`made`"):
        balanced(multimodal(), "maed")


def test_every_manager_is_its_own() -> None:
    one, two = plugin_manager({"a": Method()}), plugin_manager({"a": Method()})

    assert one is not two
    assert [name for name, _ in one.list_name_plugin()] == ["a"]
    assert one.get_plugin("a") is not two.get_plugin("a")


def test_a_hook_may_be_a_wrapper() -> None:
    @attrs.define(eq=False, kw_only=True)
    class Wrapping(Method):
        name: ClassVar[str] = "wrapping"
        seen: list[Any] = attrs.field(factory=list)

        @hookimpl(wrapper=True)
        def modbalance_observe(self, batch: Batch) -> Generator[None, list[Any], list[Any]]:
            self.seen.append((yield))
            return [{"value": batch.logits.sum()}]

    method = Wrapping()
    model = multimodal()
    optimizer = balanced(model, method)
    train(model, optimizer, batches(model, 1))
    assert optimizer._lifecycle.methods[0].seen == [[]]  # type: ignore[attr-defined]
