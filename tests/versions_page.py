"""The table of docs/versions.md: a column for each set of versions, with the tests that passed under it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

SETS = ("lowest", "developed with", "newest")
_FIRST = ("date", "Python", "torch", "torchvision", "torchaudio")
_BLOCK = re.compile(r"(<!-- versions -->\n).*?(<!-- end versions -->)", re.DOTALL)
_UNKNOWN = "-"

Column = Mapping[str, str]


def read(page: str) -> dict[str, dict[str, str]]:
    """Return the columns of the table on a page: set of versions, row, cell.

    Raises:
        ValueError: If the page has no table between its marks, or a row of another length.
    """
    match = _BLOCK.search(page)
    if match is None:
        raise ValueError("A page should have a table between <!-- versions --> and <!-- end versions -->. Found none.")
    columns: dict[str, dict[str, str]] = {name: {} for name in SETS}
    for line in match[0].splitlines()[3:-1]:
        row, *cells = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        for name, cell in zip(SETS, cells, strict=True):
            columns[name][row] = cell
    return columns


def updated(page: str, name: str, column: Column, *, anew: bool = False) -> str:
    """Return a page with the cells of one set replaced by those of `column`; its other cells stay unless `anew`."""
    columns = read(page)
    columns[name] = ({} if anew else columns[name]) | dict(column)
    lines = [f"| | {' | '.join(SETS)} |", "|---|---|---|---|"]
    known = {row for each in columns.values() for row, cell in each.items() if cell != _UNKNOWN}
    for row in sorted(known, key=_place):
        cells = [columns[each].get(row, _UNKNOWN) for each in SETS]
        lines.append(f"| {f'`{row}`' if row.startswith('tests/') else row} | {' | '.join(cells)} |")
    table = "\n".join(lines) + "\n"
    return _BLOCK.sub(lambda match: match[1] + table + match[2], page)


def _place(row: str) -> tuple[int, int, str]:
    if row in _FIRST:
        return 0, _FIRST.index(row), row
    return (2 if row.startswith("tests/") else 1), 0, row


def results(report: Path) -> dict[str, str]:
    """Return how many tests passed, failed and were skipped in each folder of tests, by a JUnit report of pytest."""
    counts: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        folder = "/".join(case.get("classname", "").split(".")[:2])
        found = {child.tag for child in case}
        outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        counts.setdefault(folder, Counter())[outcome] += 1
    return {
        folder: ", ".join(f"{each[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped") if each[outcome])
        for folder, each in counts.items()
    }
