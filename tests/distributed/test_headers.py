"""Headers on two ranks: each file is opened by one of them, and both have the same outcome."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cremad
from recipe_common.errors import RecipeError
from recipe_common.training.settings import resolve
from recipes.cremad_tree import names, write_clips, write_wav
from support.ranks import on_ranks

pytestmark = pytest.mark.slow


def loaded(rank: int, root: Path) -> tuple[int, str]:
    """Return the number of files that a rank opened, and its samples or its error."""
    try:
        data = cremad.load(resolve({"data_root": root}, cremad.RECIPE))
    except RecipeError as error:
        return 0, str(error)
    lines = [line for line in data.summary if line.startswith("headers: ")]
    samples = [str(part.samples) for part in (data.train, data.val, data.test)]  # type: ignore[attr-defined]
    return sum(int(line.split()[1]) for line in lines), "".join(samples)


def test_ranks_share_the_headers_and_the_outcome(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_clips(root, names(3))
    (first, samples), (second, others) = on_ranks(loaded, root)
    assert first + second == 72
    assert samples == others
    for name in names(3)[:2]:
        write_wav(root / "AudioWAV" / f"{name}.wav", np.zeros(0))
    (_, error), (_, other) = on_ranks(loaded, root)
    assert error == other
    assert "Found 2 that are not" in error
