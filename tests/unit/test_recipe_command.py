"""`modbalance recipe NAME` runs the script of a recipe, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modbalance._cli import recipe
from modbalance.cli import main


@pytest.mark.slow
def test_options_and_exit_status_are_those_of_the_recipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "modbalance", "recipe", "cremad"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--methods NAME" in done.stdout
    assert subprocess.run([*command, "--nothing"], capture_output=True, cwd=tmp_path).returncode == 2


def test_an_unknown_recipe_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "creamd"]) == 2
    assert "Found 'creamd'" in (told := capsys.readouterr().err)
    assert "cremad" in told


def test_a_command_without_a_name_asks_for_the_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["recipe"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("the following arguments are required: name\n")


def test_the_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipe", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "av_mnist, ave, brats," in printed
    assert "vggsound; its own options follow" in printed


def test_missing_packages_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "NEEDED", ("a_missing_package",))
    assert main(["recipe", "cremad"]) == 2
    assert "Found no a_missing_package: run `pip install 'modbalance[recipes]'`" in capsys.readouterr().err
