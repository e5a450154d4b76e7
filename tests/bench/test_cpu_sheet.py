"""The sheet of the CPU is measured by `make bench`, and written in the form that is expected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import cpu_sheet
from bench.cpu_sheet import OUTPUT, PAIRS, VARIANTS, Row, measure, measure_further, sheet
from support.methods import METHODS


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore:.*B_i.*")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_time_and_operations_of_every_method() -> None:
    before = os.getloadavg()[0]
    rows = [row for workload, pairs in PAIRS.items() for row in measure(workload, METHODS, pairs)]
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(sheet(rows, measure_further(), (before, os.getloadavg()[0])))
    print(f"\n{OUTPUT.read_text()}")


def test_a_row_holds_what_is_aimed_at() -> None:
    assert Row("mlp", "ogm", 1.234, 1036).cells() == ("mlp", "ogm", "1.23", "1.9", "1,036", "36")
    assert Row("wide", "ogm", 1.0, 36).cells()[3::2] == ("", "")


def test_the_page_names_hardware_versions_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_sheet, "Path", lambda _: Path("/nowhere"))
    page = sheet(measure("mlp", ["none", "mslr"], pairs=1), {"the same, compiled in place": 3.14159}, (0.5, 2.0))
    assert "torch 2." in page
    assert "Command: `make bench`" in page
    assert "| mlp | none |" in page
    assert "| the same, compiled in place | 3.14 | 3.0 |" in page
    assert page.count("\n| ") == 7


def test_every_aim_is_measured() -> None:
    keys = {*cpu_sheet.TIMES, *cpu_sheet.ADDED}
    measured = {(workload, title) for workload, titles in VARIANTS.items() for title in titles}
    measured |= {(workload, method) for workload in PAIRS for method in METHODS}
    assert keys <= measured
