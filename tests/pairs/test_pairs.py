"""Every pair of methods: both act, or the pair is refused with the reason, as docs/pairs.md has it."""

from __future__ import annotations

import pytest

from modbalance import BalancedOptimizer, ConfigError
from modbalance._plugins import load_method
from pairs import page
from pairs.table import SMALLEST, Cell, alone, cell, model_for, names, pairs, trained
from stacks.training import distance
from support.training import sgd

ON_PAGE = page.read(page.PAGE.read_text(encoding="utf-8"))
TOGETHER = [pair for pair, found in ON_PAGE.items() if found.difference is not None]
REFUSED = [pair for pair, found in ON_PAGE.items() if found.difference is None]


def problem(pair: tuple[str, str], found: Cell, expected: Cell | None) -> str | None:
    """Return how a cell differs from the page, or from what is allowed; None where all is well."""
    if expected is None or (found.difference is None) != (expected.difference is None) or found.note != expected.note:
        return f"{pair}: {found}, and on the page {expected}"
    if found.difference is None:
        return None
    return None if SMALLEST < found.difference < float("inf") else f"{pair}: one of them does not act, or diverges"


def test_the_page_has_every_pair() -> None:
    assert ON_PAGE.keys() == {*pairs()}, "docs/pairs.md is written by `make pairs`"


def test_an_empty_cell_is_noticed() -> None:
    with pytest.raises(ValueError, match="could not convert string to float: ''"):
        page.read("| first | `a` | `b` |\n|---|---|---|\n| `a` | - | |\n| `b` | 1 | - |\n")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning")  # those that a method has for its own
@pytest.mark.parametrize("first", names())
def test_both_methods_act_or_the_pair_is_refused(first: str) -> None:
    found = {(a, b): cell(a, b) for a, b in pairs() if a == first}
    problems = [problem(pair, each, ON_PAGE.get(pair)) for pair, each in found.items()]

    assert [each for each in problems if each] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning")
@pytest.mark.parametrize("first", names())
def test_a_second_training_of_a_pair_is_the_first_one(first: str) -> None:
    for pair in [pair for pair in TOGETHER if pair[0] == first < pair[1]]:
        assert distance(trained(*pair), trained(*pair)) == 0, pair


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: "-".join(pair))
def test_a_refusal_comes_before_the_training_and_names_both_methods(pair: tuple[str, str]) -> None:
    model = model_for(*pair)
    with pytest.raises(ConfigError) as raised:
        BalancedOptimizer(sgd(model), [*pair], model=model, modalities=model.paths, fusion="fusion")
    assert all(name in str(raised.value) for name in pair)
    assert "choose one of them" in str(raised.value)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Cell(1e-4), Cell(0.1)),
        (Cell(float("inf")), Cell(0.1)),
        (Cell(None, "X should be Y."), Cell(0.1)),
        (Cell(None, "X should be Y."), Cell(None, "Z should be Y.")),
        (Cell(0.1), None),
    ],
)
def test_a_cell_that_differs_from_its_page_is_a_problem(found: Cell, expected: Cell | None) -> None:
    assert problem(("a", "b"), found, expected) is not None
    assert problem(("a", "b"), Cell(0.1), Cell(0.2)) is None


@pytest.mark.parametrize("other", ["agm", "lfm", "mmcosine", "mmpareto", "opm"])
def test_no_logits_that_go_around_the_cut_of_dgl(other: str) -> None:
    """The fused loss of these methods reaches the encoders on a path that DGL does not cut."""
    assert (other, "dgl") in REFUSED
    assert (other in ("agm", "lfm")) <= (load_method(other).excluded_hooks == {"modbalance_features"})


def test_alone_is_the_training_with_one_method() -> None:
    assert distance(alone("mslr"), trained("mslr")) == 0
