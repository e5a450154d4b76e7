"""Builds wheel and sdist, checks what they hold, and tries the wheel in a fresh environment, as its users do.

python tests/release_check.py [--download]

The fresh environment sees the dependencies of the Python that runs this script, through a path file, and only the wheel
is installed into it: torch is not downloaded again. `--download` installs all dependencies from the package index.
Exit status: 0, or 1 with the first check that failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IN_WHEEL = (
    "modbalance/py.typed",
    "modbalance/_template/pyproject.toml.txt",
    "modbalance/testing/__init__.py",
    "modbalance/_recipes/cremad.py",
    "modbalance/_recipes/recipe_common/cli.py",
)
METHODS = """
import torch
from torch import nn
import modbalance
from modbalance import BalancedOptimizer, list_methods
from audio_visual import AudioVisual, samples

assert "release-check" in modbalance.__file__, modbalance.__file__
for listing in list_methods():
    assert listing.method is not None, listing.problem
    options = {"init": {"audio": 0.9, "visual": 1.1}} if listing.name == "mslr" else {}
    model = AudioVisual()
    optimizer = BalancedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), method=listing.name, model=model,
        modalities={"audio": "audio_net", "visual": "visual_net"}, fusion="fusion", **options,
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    data = torch.utils.data.DataLoader(samples(32), 8)
    optimizer.begin(train=data)
    for audio, visual, target in data:
        optimizer.zero_grad()
        criterion(model(audio, visual), target).backward()
        optimizer.step()
    optimizer.end_epoch(train=data, val=data)
    print("trained by", listing.name)
"""


class CheckError(Exception):
    """A check of the release failed."""


def check_content(wheel: Iterable[str], sdist: Iterable[str]) -> None:
    """Raise a CheckError if the wheel or the sdist lacks a file, or holds one that belongs to neither.

    Args:
        wheel: Names of the files in the wheel.
        sdist: Those in the sdist, without the folder that holds all.
    """
    wheel, sdist = set(wheel), set(sdist)
    plugins = sorted(set(PROJECT["entry-points"]["modbalance"].values()))
    expected = {*IN_WHEEL, *(f"{each}/{file}" for each in plugins for file in ("__init__.py", "py.typed"))}
    if missing := sorted(expected - wheel):
        raise CheckError(f"The wheel should hold all plugins, markers and templates. Found no {', '.join(missing)}.")
    allowed = ("modbalance/", "modbalance-", *(f"{each}/" for each in plugins))
    if foreign := sorted(each for each in wheel if not each.startswith(allowed) or "__pycache__" in each):
        raise CheckError(f"The wheel should hold the package and its plugins alone. Found {', '.join(foreign)}.")
    sources = {"pyproject.toml", "README.md", "LICENSE", "recipes/cremad.py", "modbalance/__init__.py"}
    if missing := sorted(sources - sdist):
        raise CheckError(f"The sdist should hold what the wheel is built from. Found no {', '.join(missing)}.")


def build(folder: Path) -> Path:
    """Build the sdist, and the wheel from it; check both and return the wheel."""
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
        names = [each.split("/", 1)[-1] for each in archive.getnames()]
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / sdist.name[:-7])
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        check_content(packed.namelist(), names)
    return wheel


def install(wheel: Path, environment: Path, download: bool = False) -> Path:
    """Create an environment, install the wheel into it, and return its Python."""
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    if download:
        _run(python, "-m", "pip", "install", "--quiet", f"{wheel}[recipes]", "pytest")
    else:
        (site,) = (environment / "lib").glob("python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", "--no-index", wheel)
    return python


def try_wheel(wheel: Path, folder: Path, download: bool) -> None:
    """Install the wheel into a fresh environment and use it from a folder without sources."""
    python = install(wheel, folder / "environment", download)
    used = folder / "used"
    used.mkdir()
    example = (ROOT / "docs" / "examples" / "audio_visual.py").read_text(encoding="utf-8")
    (used / "audio_visual.py").write_text(example, encoding="utf-8")
    (used / "methods.py").write_text(METHODS, encoding="utf-8")
    command = python.parent / "modbalance"
    _run(python, "methods.py", cwd=used)
    _run(command, "methods", cwd=used)
    _run(command, "show", "ogm_ge", cwd=used)
    _run(command, "recipe", "cremad", "--help", cwd=used)
    _run(command, "new", "my-method", cwd=used)
    new = used / "modbalance-my-method"
    index = [] if download else ["--no-deps", "--no-build-isolation", "--no-index"]
    _run(python, "-m", "pip", "install", "--quiet", *index, new, cwd=used)
    _run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", new / "tests", cwd=used)


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    words = [str(each) for each in command]
    print("$", " ".join(words), flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    status = subprocess.run(words, cwd=cwd, env=environment, check=False).returncode
    if status:
        raise CheckError(f"The command should end with status 0. Found {status}: {' '.join(words)}")


def main() -> int:
    """Run all checks and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--download", action="store_true", help="install dependencies from the package index")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="release-check-") as name:
        try:
            try_wheel(build(Path(name)), Path(name), options.download)
        except CheckError as error:
            print(f"release check: {error}", file=sys.stderr)
            return 1
    print(f"release check passed on Python {sys.version.split()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
