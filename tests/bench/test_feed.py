"""Speed of reading clips, one by one as in the papers' code and from the cache; share of a step spent waiting.

`make bench` prints the figures; ratios are from one run, on one core, of the time that the process had the core. Clips
have the proportions of CREMA-D: 2.5 s of sound at 16 kHz, frames of 480 x 360 pixels. Each reading is measured as
whole batches of a DataLoader.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

import cremad
from bench.paper_reading import PaperDataset
from recipe_common.cli import main
from recipe_common.report.curves import Picture
from recipe_common.report.folder import RunFolder
from recipes.cremad_sized_clips import open_data, write_clips

CLIPS = 64
TARGET = 8.0
"""Least ratio of samples per second and core, from the cache to one by one."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips") / "data", CLIPS)


def core_seconds(loaders: Mapping[str, Iterable[Any]], repetitions: int = 7) -> dict[str, float]:
    """Return the least processor time that each loader takes for a sample: when it was least disturbed."""
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for repetition in range(repetitions + 1):
        for name, loader in loaders.items():
            started = time.process_time()
            for _ in loader:
                pass
            if repetition > 0:
                times[name].append((time.process_time() - started) / CLIPS)
    return {name: min(values) for name, values in times.items()}


@pytest.fixture
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.bench
@pytest.mark.usefixtures("_one_thread")
def test_the_cache_is_eight_times_as_fast_as_reading_one_by_one(root: Path) -> None:
    flags = ["--data-root", str(root)]
    cache: Any = open_data(cremad.RECIPE, *flags, "--cache", "auto").train
    batches = [[(0, index) for index in range(CLIPS)]]
    paper: Any = PaperDataset(cache.samples)
    loaders: dict[str, Iterable[Any]] = {
        "the papers' way, one by one": DataLoader(paper, CLIPS),
        "these recipes, one by one": DataLoader(open_data(cremad.RECIPE, *flags).train, batch_sampler=batches),
        "cache": DataLoader(cache, batch_sampler=batches, collate_fn=cache.finish_batch),
        "cache, transforms on the device": DataLoader(cache, batch_sampler=batches, collate_fn=cache.pack_batch),
    }
    seconds = core_seconds(loaders)
    first = next(iter(seconds.values()))
    title = "CREMA-D clips, paper's sizes; with transforms on the device, what is left for the core"
    table = Table("reading", "ms per sample", "samples / s / core", "ratio", title=title)
    for name, each in seconds.items():
        table.add_row(name, f"{1000 * each:.2f}", f"{1 / each:,.0f}", f"{first / each:.1f}")
    Console(width=110).print(table)
    assert first / seconds["cache"] >= TARGET
    assert first / seconds["cache, transforms on the device"] >= TARGET


@pytest.mark.bench
def test_the_share_of_a_step_that_waits_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picture, "save", lambda picture, path: [])
    table = Table("cache", "workers", "ms per step", "waiting for data", title="synthetic CREMA-D set, batch 16")
    for cache in ([], ["--cache", "auto"]):
        for workers in (0, 2):
            row = last_epoch(tmp_path / f"{bool(cache)}-{workers}", [*cache, "--workers", str(workers)])
            share = row["waiting"] / row["seconds"]
            step = 1000 * row["seconds"] / row["steps"]
            table.add_row("yes" if cache else "no", str(workers), f"{step:.0f}", f"{share:.1%}")
            assert 0 <= share < 1
    Console(width=100).print(table)


def last_epoch(output: Path, flags: list[str]) -> dict[str, float]:
    """Train for two epochs of six steps; return what is recorded of the second, in which workers are running."""
    with redirect_stdout(io.StringIO()):
        status = main(cremad.RECIPE, ["--epochs", "2", "--limit-batches", "6", "--output", str(output), *flags])
    assert status == 0
    result = RunFolder(output / "none", cremad.RECIPE.name, {}).read_result()
    assert result is not None
    history: list[dict[str, float]] = result["history"]
    return history[-1]
