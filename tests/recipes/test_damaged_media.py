"""Damaged copies of files of every kind: each is read, or named by an error with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe_common.errors import RecipeError

from .damaged_media import MEDIA

pytestmark = pytest.mark.slow

COUNTS = {
    "NIfTI": 1_000,
    "NIfTI, gzip": 300,
    "volumes in h5": 400,
    "frames in h5": 400,
    **{name: 100 for name in MEDIA if name.startswith("AVE, ")},
    "IEMOCAP features": 300,
    "IEMOCAP statistics": 300,
    "packed pickle": 1_000,
    "MMSA pickle": 300,
    "stored pickle": 1_000,
    **{name: 250 for name in MEDIA if "npy" in name},
    "stored pt": 500,
    **{name: 300 for name in MEDIA if name.startswith(("csv", "json", "txt"))},
    **dict.fromkeys(("flv", "mp4", "avi", "mkv"), 300),
    **dict.fromkeys(("wav", "float wav", "jpg", "png"), 250),
}
"""Damaged copies of each kind: at least 1,000 of NIfTI, h5, pickles, npy, lists and video."""
SEED, SEEDS = 7, {"stored pickle": 9, "MMSA pickle": 9}
"""None of these makes a library crash, hang or fill the memory, even where recipes had no checks before it."""
LONGEST = 1_000
"""Characters of a message."""


@pytest.mark.parametrize("kind", MEDIA)
def test_a_whole_file_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / MEDIA[kind].name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(MEDIA[kind].whole())
    MEDIA[kind].read(path)


@pytest.mark.parametrize("kind", MEDIA)
def test_a_damaged_file_is_read_or_named(tmp_path: Path, kind: str) -> None:
    media, errors = MEDIA[kind], []
    for number, content in enumerate(media.damaged(COUNTS[kind], SEEDS.get(kind, SEED))):
        # A path of its own: libraries keep files open under their names.
        path = tmp_path / str(number) / media.name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        try:
            media.read(path)
        except RecipeError as error:
            errors.append(str(error))
    name = Path(media.name).name
    assert [error for error in errors if name not in error or ". Found " not in error] == []
    assert [error for error in errors if "\n" in error or len(error) > LONGEST] == []
    assert COUNTS[kind] / 5 < len(errors) <= COUNTS[kind]
