"""Checkpoints on disk: plain values, whatever a library returned."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from recipe_common.training.checkpoint import WEIGHTS, load, save


def test_numpy_scalars_are_saved_as_python_numbers(tmp_path: Path) -> None:
    weights = torch.nn.BatchNorm1d(2).state_dict()
    row = {"f1": np.float64(0.5), "found": np.bool_(True), "epochs": [np.int64(1), 2], "pair": (np.float32(0.25), "x")}
    save({**dict.fromkeys(WEIGHTS, ""), "row": row, "model": weights}, tmp_path / "best.pt")

    found = load(tmp_path / "best.pt")

    assert found["row"] == {"f1": 0.5, "found": True, "epochs": [1, 2], "pair": (0.25, "x")}
    assert [type(found["row"][name]) for name in ("f1", "found")] == [float, bool]
    assert isinstance(found["model"], OrderedDict)
    versions = [getattr(each, "_metadata", None) for each in (found["model"], weights)]  # `load_state_dict` reads them
    assert versions[0] == versions[1] is not None
