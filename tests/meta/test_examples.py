"""The examples run as they stand, are short, and stand on their page."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stacks import accelerate_as_new

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "examples"
LINES = 40
METHODS = {
    "lightning_automatic": "ogm_ge",
    "lightning_manual": "ogm",
    "accelerate_loop": "agm",
    "trainer": "dgl",
    "amp": "ogm",
    "sam": "ogm",
}
"""By script, the method that it shows."""


@pytest.fixture
def _as_a_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    with accelerate_as_new():
        yield
    sys.modules.pop("audio_visual", None)


@pytest.mark.slow
@pytest.mark.usefixtures("_as_a_script")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of Lightning
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*GPU available:UserWarning")
@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning")
@pytest.mark.filterwarnings("ignore:.*logging interval:UserWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
@pytest.mark.parametrize("name", METHODS)
def test_it_trains_two_epochs_and_its_method_acts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    last = capsys.readouterr().out.strip().splitlines()[-1]

    assert re.match(rf"2 \{{'{METHODS[name]}/", last), last


@pytest.mark.slow
@pytest.mark.cpu_fsdp
def test_sharded_ranks_train_two_epochs_and_their_method_acts() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "fsdp2.py"]
    done = subprocess.run(
        command, cwd=FOLDER, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )

    assert done.returncode == 0, done.stderr
    assert re.match(r"2 \{'ogm_ge/ratio/audio'", done.stdout.strip().splitlines()[-1]), done.stdout


def test_every_script_is_run_is_short_and_stands_on_the_page() -> None:
    scripts = {path.stem: path for path in FOLDER.glob("*.py")}
    page = (FOLDER / "README.md").read_text()

    assert set(scripts) == {*METHODS, "audio_visual", "fsdp2"}
    assert {name: len(path.read_text().splitlines()) for name, path in scripts.items() if _is_long(path)} == {}
    assert [name for name in scripts if f"]({name}.py)" not in page] == []


def _is_long(path: Path) -> bool:
    return len(path.read_text().splitlines()) > LINES
