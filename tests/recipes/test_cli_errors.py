"""Bad input to the command line: one message, exit code 2, no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from recipe_common.cli import main
from recipe_common.errors import RecipeError, require
from recipe_common.recipe import Data
from recipe_common.settings.shared import Settings
from recipes.tiny_recipe import RECIPE, TinyDataset


def _main(*arguments: str | Path) -> int:
    return main(RECIPE, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bad"], "nowhere should hold wav files"),
        (["--methods", "ogm_gee"], "ogm_ge"),
        (["--methods", "none", "none"], "each method once"),
        (["--methods", "ogm_ge", "--option", "alpha=-1"], "alpha"),
        (["--methods", "ogm_ge", "--option", "alhpa=1"], "alpha"),
        (["--eval", "nowhere.pt"], "Found no file"),
        (["--device", "toaster"], "toaster"),
        (["--device", "meta"], "Found `meta`"),
        (["--device", "cuda:99"], "The device `cuda:99` should exist"),
    ],
)
def test_user_errors_are_one_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(*arguments, "--output", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_eval_of_a_file_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "best.pt"
    path.write_text("not a checkpoint")
    assert _main("--eval", path) == 2
    assert "cannot be read" in capsys.readouterr().err
    torch.save({"model": {}}, path)
    assert _main("--eval", path) == 2
    assert "format 1" in capsys.readouterr().err


def test_an_empty_split_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def load(settings: Settings[Any]) -> Data:
        return attrs.evolve(RECIPE.load(settings), val=TinyDataset(0))

    assert main(attrs.evolve(RECIPE, load=load), ["--output", str(tmp_path)]) == 2
    assert "none in val" in capsys.readouterr().err


def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(
        RecipeError, match=r"`no_such_library` should .*\. Found .*: run `pip install -e .\.\[recipes\]"
    ):
        require("no_such_library")


def test_sub_commands_go_to_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("hello", "--world") == 7
    assert capsys.readouterr().out == "hello --world\n"


def test_resume_and_overwrite_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        _main("--resume", "--overwrite")
    assert stopped.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
