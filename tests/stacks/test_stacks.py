"""Every method in every training stack: equal to the reference of the stack, or refused, as docs/stacks.md has it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from stacks import page
from stacks.table import STACKS, Cell, Stack, cell
from stacks.training import bare_loop, distance, methods, plain_loop

pytestmark = [
    pytest.mark.filterwarnings("ignore:The logits of each coalition:modbalance.ModbalanceWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*GPU available:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),  # evaluations, reentrant
    pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning"),  # of transformers before 5
]


def stacks() -> list[Any]:
    kinds = {title: [pytest.mark.cpu_fsdp] if stack.needs_cpu_fsdp else [] for title, stack in STACKS.items()}
    return [pytest.param(title, marks=[pytest.mark.slow, *marks]) for title, marks in kinds.items()]


def problem(stack: Stack, method: str, found: Cell, expected: Cell) -> str | None:
    """Return how a cell differs from the page, or from what is allowed; None where all is well."""
    if (found.difference is None) != (expected.difference is None) or found.note != expected.note:
        return f"{method}: {found}, and on the page {expected}"
    limit = math.nextafter(math.inf, 0) if found.note else stack.limit
    return f"{method}: {found.difference} > {limit}" if (found.difference or 0) > limit else None


@pytest.mark.parametrize("title", stacks())
def test_each_method_equals_the_reference_or_is_refused(title: str) -> None:
    """One test for a stack: its pair of processes trains all methods."""
    on_page, stack = page.read(page.PAGE.read_text(encoding="utf-8")), STACKS[title]
    problems = [problem(stack, method, cell(stack, method), on_page[title, method]) for method in methods()]

    assert [each for each in problems if each] == []


@pytest.mark.parametrize("method", [name for name in methods() if name != "none"])
def test_each_method_acts_in_these_steps(method: str) -> None:
    assert distance(plain_loop(method), bare_loop(method)) > 0.01


def test_the_page_has_every_method_and_stack_and_no_empty_cell() -> None:
    text = page.PAGE.read_text(encoding="utf-8")

    assert page.read(text).keys() == {(title, method) for title in STACKS for method in methods()}
    assert all(stack.reference_name in text and stack.setting in text for stack in STACKS.values())
    assert all(found.difference is not None or found.note for found in page.read(text).values())


def test_an_empty_cell_is_noticed() -> None:
    with pytest.raises(ValueError, match="Found ''"):
        page.read("| method | acts | plain |\n|---|---|---|\n| `ogm` | 1 | |\n")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Cell(2e-6), Cell(0.0)),
        (Cell(float("inf")), Cell(0.0)),
        (Cell(None, "X should be Y."), Cell(0.0)),
        (Cell(None, "X should be Y."), Cell(None, "Z should be Y.")),
        (Cell(0.0), Cell(None, "X should be Y.")),
    ],
)
def test_a_cell_that_differs_from_its_page_is_a_problem(found: Cell, expected: Cell) -> None:
    assert problem(STACKS["DDP"], "ogm", found, expected) is not None
    assert problem(STACKS["DDP"], "ogm", expected, expected) is None
