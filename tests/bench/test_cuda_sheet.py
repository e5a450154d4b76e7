"""The sheet of a GPU in its shortened form on the CPU: it is written, and names a step that reads the device."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from bench.cuda_sheet import PARTS, Sheet, main, reads
from modbalance.context import Batch
from modbalance.hookspecs import hookimpl
from modbalance.method import Method


@attrs.define(eq=False, kw_only=True)
class ReadsTheTarget(Method):
    name = "reads_the_target"

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        assert int(batch.target.max()) >= 0
        return {}


@pytest.mark.slow
def test_every_part_is_written_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "sheet.md"
    assert main(["--methods", "ogm_ge", "--output", str(output)]) == 0
    text = output.read_text()
    assert all(f"## {name}" in text for name in PARTS)
    assert "| ogm_ge | 0 | none |" in text
    assert text.count("| bare optimizer |") == 4


def test_parts_for_which_no_time_is_left_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sheet.md"
    assert main(["--seconds", "0", "--output", str(output)]) == 1
    assert output.read_text().count("Left out: no time.") == len(PARTS)
    assert "Step times: left out, no time" in capsys.readouterr().out


def test_a_step_that_reads_the_device_is_a_fault(tmp_path: Path) -> None:
    sheet = Sheet(torch.device("cpu"), [ReadsTheTarget()], tmp_path / "sheet.md", time.monotonic() + 60)
    assert reads(sheet).faults == ("reads_the_target: the host reads the device in a step",)
