"""A run with a damaged file is not gone on with: one message names the file and the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from recipe_common.cli import main
from recipe_common.training.trainer import Trainer
from recipes.tiny_recipe import RECIPE
from recipes.without_pictures import without_pictures

pytestmark = pytest.mark.slow

BINARY = bytes(range(255, -1, -1))


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert main(RECIPE, ["--output", str(output), "--epochs", "1"]) == 0
    return output


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _without(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[name]
        path.write_text(json.dumps(content))

    return damage


def _old_format(path: Path) -> None:
    torch.save({"format": 1}, path)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated state": ("last.pt", _truncate),
    "text for a state": ("last.pt", lambda path: path.write_text("a text, and no checkpoint\n" * 10)),
    "weights for a state": ("last.pt", lambda path: shutil.copy(path.with_name("best.pt"), path)),
    "nothing in a state": ("last.pt", _old_format),
    "no weights": ("best.pt", Path.unlink),
    "truncated weights": ("best.pt", _truncate),
    "empty result": ("result.json", lambda path: path.write_text("{}")),
    "null for a result": ("result.json", lambda path: path.write_text("null")),
    "binary result": ("result.json", lambda path: path.write_bytes(BINARY)),
    "binary config": ("config.json", lambda path: path.write_bytes(BINARY)),
    "config without versions": ("config.json", _without("versions")),
    "binary metrics": ("metrics.csv", lambda path: path.write_bytes(BINARY)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_the_way_out(
    damage: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, do_damage = DAMAGES[damage]
    shutil.copytree(finished / "none", tmp_path / "none")
    do_damage(tmp_path / "none" / name)
    flags = ["--output", str(tmp_path), "--epochs", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", lambda *_: pytest.fail("trained"))
        assert main(RECIPE, [*flags, "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'none' / name} should ")
    assert error.count("\n") == 1
    assert ". Found " in error
    assert ": restore" in error
    assert main(RECIPE, [*flags, "--overwrite"]) == 0


def test_a_run_with_a_damaged_file_fails_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "none", tmp_path / "none")
    _truncate(tmp_path / "none" / "last.pt")
    flags = ["--methods", "none", "ogm_ge", "--output", str(tmp_path), "--epochs", "2", "--resume"]
    assert main(RECIPE, flags) == 1
    path = tmp_path / "none" / "last.pt"
    assert f"FAILED: none, seed 0: {path} should be a checkpoint of a recipe" in capsys.readouterr().out
    assert (tmp_path / "ogm_ge" / "result.json").exists()
