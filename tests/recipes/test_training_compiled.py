"""`--compile`: methods one after the other, in any order."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest
import torch

from recipe_common.cli import main
from recipe_common.comparison import compare
from recipe_common.report.curves import Picture
from recipes.tiny_recipe import RECIPE

pytestmark = pytest.mark.slow


METHODS = ["none", "ogm_ge", "dgl", "cggm", "agm"]


# dynamo looks at the gradient of features, which are no leaves, after a graph break
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("order", [METHODS, METHODS[::-1]], ids=["none first", "none last"])
def test_methods_train_compiled_in_any_order(order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picture, "save", lambda picture, path: [])
    monkeypatch.setattr(compare, "write_figure", lambda figure, path: [])
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    flags = ["--compile", "--epochs", "1", "--limit-batches", "2"]

    assert main(RECIPE, ["--output", str(tmp_path), "--methods", *order, *flags]) == 0
    with (tmp_path / "comparison.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == order
