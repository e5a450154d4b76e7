"""Builds wheel and sdist, checks what they hold, and tries both in a fresh environment, as their users do.

python tests/release_check.py [--download]

The fresh environment is one of the Python that runs this script. It sees the dependencies of that Python through a path
file, and only wheel and sdist are installed into it: torch is not downloaded again. With `--download` it has the newest
dependencies of the package index, 3 GB of downloads, and the Python that runs this script needs none.
Exit status: 0, or 1 with the first check that failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
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
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
IN_WHEEL = (
    "modbalance/py.typed",
    "modbalance/_template/pyproject.toml.txt",
    "modbalance/testing/__init__.py",
    "modbalance/_recipes/cremad.py",
    "modbalance/_recipes/recipe_common/cli.py",
)
OF_SDIST = ("tests/meta/test_project_files.py", "tests/unit/test_lifecycle.py", "tests/parity/test_ogm_ge.py")
"""Tests that run from the unpacked sdist, on the installed wheel; `-P` keeps the folder out of the path."""


METHODS = """
import sys
import torch
from torch import nn
import modbalance
from modbalance import BalancedOptimizer, list_methods
from audio_visual import AudioVisual, samples
from modbalance_mla import SharedHead

assert modbalance.__file__.startswith(sys.prefix), modbalance.__file__
for listing in list_methods():
    assert listing.method is not None, listing.problem
    options = {"init": {"audio": 0.9, "visual": 1.1}} if listing.name == "mslr" else {}
    model = AudioVisual()
    if "shared_head" in listing.method.needs:
        model.fusion = SharedHead(nn.Linear(16, 3))
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
METADATA = """
import re
from importlib.metadata import distribution
from packaging.metadata import Metadata

metadata = Metadata.from_email(distribution("modbalance").read_text("METADATA"), validate=True)
relative = re.findall(r"\\]\\((?!https?://|#)[^)]*\\)", metadata.description)
assert not relative, f"The description should have no relative link. Found {relative}."
"""
IMPORTS = """
import importlib, pkgutil
import modbalance, modbalance.testing

for each in pkgutil.walk_packages(modbalance.__path__, "modbalance."):
    if not each.name.endswith("__main__") and each.name.split(".")[1] not in ("_recipes", "_template"):
        importlib.import_module(each.name)
assert all(each.method for each in modbalance.list_methods())
"""
TYPED = ROOT / "tests" / "release" / "typed.py"


class CheckError(Exception):
    """A check of the release failed."""


def check_content(wheel: Iterable[str], sdist: Iterable[str], sources: Iterable[str]) -> None:
    """Raise a CheckError if the wheel or the sdist lacks a file, or holds one that belongs to neither.

    Args:
        wheel: Names of the files in the wheel.
        sdist: Those in the sdist, without the folder that holds all.
        sources: Those in git.
    """
    wheel, sdist, sources = set(wheel), set(sdist), set(sources)
    plugins = sorted(set(PROJECT["entry-points"]["modbalance"].values()))
    expected = {*IN_WHEEL, *(f"{each}/{file}" for each in plugins for file in ("__init__.py", "py.typed"))}
    if missing := sorted(expected - wheel):
        raise CheckError(f"The wheel should hold all plugins, markers and templates. Found no {', '.join(missing)}.")
    allowed = ("modbalance/", "modbalance-", *(f"{each}/" for each in plugins))
    if foreign := sorted(each for each in wheel if not each.startswith(allowed) or "__pycache__" in each):
        raise CheckError(f"The wheel should hold the package and its plugins alone. Found {', '.join(foreign)}.")
    if missing := sorted(sources - sdist):
        raise CheckError(
            f"The sdist should hold what is in git. Found no {', '.join(missing)}: name it in pyproject.toml."
        )
    if foreign := sorted(sdist - sources - {"PKG-INFO"}):
        raise CheckError(
            f"The sdist should hold what is in git alone. Found {', '.join(foreign)}: commit or remove it."
        )


def check_same(direct: Path, indirect: Path) -> None:
    """Raise a CheckError if the wheel built from the sources and that built from the sdist differ in a file."""
    one, two = _checksums(direct), _checksums(indirect)
    if names := sorted(name for name in one | two if one.get(name) != two.get(name)):
        raise CheckError(f"The wheels from git and from the sdist should be equal. Found other {', '.join(names)}.")


def _checksums(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as packed:
        return {each.filename: each.CRC for each in packed.infolist()}


def build(python: Path, folder: Path) -> tuple[Path, Path]:
    """Build the sdist and the wheel from it, and return both."""
    _hatchling(python, "sdist", ROOT, folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    _hatchling(python, "wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def check_build(python: Path, sdist: Path, wheel: Path) -> None:
    """Raise a CheckError if sdist or wheel hold other files than they should, or the sources make another wheel."""
    with tarfile.open(sdist) as archive, zipfile.ZipFile(wheel) as packed:
        held = [each.split("/", 1)[-1] for each in archive.getnames()]
        if (ROOT / ".git").exists():
            check_content(packed.namelist(), held, _sources())
        else:
            print("not checked: whether the sdist holds all files of git, which is not here")
            check_content(packed.namelist(), held, {*held} - {"PKG-INFO"})
    _hatchling(python, "wheel", ROOT, direct := wheel.parent / "direct")
    check_same(next(direct.glob("*.whl")), wheel)


def _sources() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.rstrip("\0").split("\0")


def _hatchling(python: Path, target: str, source: Path, folder: Path) -> None:
    _run(python, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)


class Environment:
    """A fresh environment of this Python, for one wheel.

    Args:
        folder: Where it is built.
        download: Whether dependencies come from the package index, or from the environment of this Python.
    """

    def __init__(self, folder: Path, download: bool) -> None:
        venv.create(folder, with_pip=True)
        self.interpreter = folder / "bin" / "python"
        self.download = download
        if not download:
            (site,) = (folder / "lib").glob("python*/site-packages")
            (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def install(self, package: Path, extras: str = "", *arguments: str) -> None:
        """Install a package: a wheel, an sdist or a folder."""
        index = [] if self.download else ["--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed"]
        _run(
            self.interpreter,
            "-m",
            "pip",
            "install",
            "--quiet",
            *index,
            *arguments,
            f"{package}{extras}",
            cwd=package.parent,
        )

    def python(self, *arguments: str | Path, cwd: Path) -> None:
        """Run Python in a folder."""
        _run(self.interpreter, *arguments, cwd=cwd)

    def command(self, name: str, *arguments: str | Path, cwd: Path) -> None:
        """Run a command of the environment in a folder."""
        _run(self.interpreter.parent / name, *arguments, cwd=cwd)


def try_wheel(environment: Environment, wheel: Path, used: Path) -> None:
    """Install the wheel into the environment and use it from a folder without sources."""
    environment.install(wheel, "[recipes,dev]" if environment.download else "")
    used.mkdir()
    for source in (ROOT / "docs" / "examples" / "audio_visual.py", TYPED):
        shutil.copy(source, used)
    (used / "methods.py").write_text(METHODS, encoding="utf-8")
    environment.python("-W", "error", "-c", "import modbalance", cwd=used)
    environment.python("-c", IMPORTS, cwd=used)
    environment.python("-c", METADATA, cwd=used)
    environment.python("methods.py", cwd=used)
    environment.python("-m", "mypy", "--strict", "typed.py", cwd=used)
    environment.command("modbalance", "methods", cwd=used)
    environment.command("modbalance", "show", "ogm_ge", cwd=used)
    environment.command("modbalance", "recipe", "cremad", "--help", cwd=used)
    environment.command("modbalance", "new", "my-method", cwd=used)
    new = used / "modbalance-my-method"
    environment.install(new)
    environment.python("-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", new / "tests", cwd=used)
    environment.command("modbalance", "check", "modbalance-my-method", cwd=used)


def try_sdist(environment: Environment, sdist: Path) -> None:
    """Run tests of the unpacked sdist on the installed wheel, then install the sdist in its place."""
    unpacked = sdist.with_name(sdist.name.removesuffix(".tar.gz"))
    environment.python("-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *OF_SDIST, cwd=unpacked)
    environment.install(sdist, "", "--force-reinstall", "--no-deps")
    environment.python("-W", "error", "-c", IMPORTS, cwd=sdist.parent / "used")
    environment.command("modbalance", "methods", "--no-cost", cwd=sdist.parent / "used")


def _builder(folder: Path, download: bool) -> Path:
    """Return a Python that has what builds the project: this one, or one with that alone."""
    if not download:
        return Path(sys.executable)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", *PYPROJECT["build-system"]["requires"])
    return python


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    words = [str(each) for each in command]
    shown = [word.strip().split("\n")[0] + " ..." if "\n" in word else word for word in words]
    print("$", " ".join(shown), flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    status = subprocess.run(words, cwd=cwd, env=environment, check=False).returncode
    if status:
        raise CheckError(f"The command should end with status 0. Found {status}: {' '.join(shown)}")


def main() -> int:
    """Run all checks and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--download", action="store_true", help="install dependencies from the package index")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="release-check-") as name:
        folder = Path(name)
        try:
            python = _builder(folder / "builder", options.download)
            sdist, wheel = build(python, folder)
            check_build(python, sdist, wheel)
            environment = Environment(folder / "environment", options.download)
            try_wheel(environment, wheel, folder / "used")
            try_sdist(environment, sdist)
        except CheckError as error:
            print(f"release check: {error}", file=sys.stderr)
            return 1
    print(f"release check passed on Python {sys.version.split()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
