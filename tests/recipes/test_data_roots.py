"""Wrong data roots of every recipe: each ends with one message of what should be there, what is there, and the fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipe_common.cli import main
from recipe_common.recipe import Recipe

from .test_every_recipe import every_recipe

PICKLES = ("ch_sims", "cmu_mosei", "cmu_mosi", "ur_funny")
"""Recipes whose data root may be a file."""


def write_other(root: Path) -> None:
    """Files of no dataset."""
    root.mkdir()
    for name in ("notes.md", "model.pt"):
        (root / name).touch()


ROOTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "absent": ("data", lambda root: None, "no such folder"),
    "empty": ("data", Path.mkdir, "an empty folder"),
    "file": ("data.txt", lambda root: root.write_text("x"), "a file, which is no folder"),
    "archive": ("data.zip", lambda root: root.write_bytes(b"PK\3\4" + bytes(50)), "an archive that is not unpacked"),
    "other": ("data", write_other, "model.pt, notes.md"),
}


@every_recipe
@pytest.mark.parametrize("kind", list(ROOTS))
def test_a_wrong_root_is_one_message(
    recipe: Recipe, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, write, found = ROOTS[kind]
    root = tmp_path / name
    write(root)
    assert main(recipe, ["--data-root", str(root), "--output", str(tmp_path / "out")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert message.count("error:") == 1
    assert str(root) in message
    if recipe.name in PICKLES and root.is_file():
        found = {"file": "Found 1 bytes that", "archive": "Found a zip archive"}[kind]
    assert found in message
    assert message.endswith(".")
    assert not (tmp_path / "out").exists()
