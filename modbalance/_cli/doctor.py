"""`modbalance doctor`: the environment, plugins that cannot be loaded, versions that do not go together."""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Mapping
from importlib import metadata

import torch

from modbalance._cli.command import DONE, FAILED, Command, Output, add_row, table
from modbalance._plugins import list_methods

LIBRARIES = (
    *("modbalance", "torch", "torchvision", "torchaudio", "numpy", "pluggy", "attrs", "rich", "lightning"),
    *("accelerate", "transformers", "scikit-learn", "matplotlib", "tensorboard", "wandb", "mlflow", "mlflow-skinny"),
)
_AUDIO = "https://docs.pytorch.org/audio/2.11.0/installation.html"
_VISION_BUILDS = "https://github.com/pytorch/vision/issues/8985"
_OF_PYPI = {
    "torchvision": "https://github.com/pytorch/vision/issues/9085",
    "torchaudio": "https://github.com/bagustris/w2v2-vad/issues/1",
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no further arguments."""


def _run(parsed: argparse.Namespace, output: Output) -> int:
    versions = installed(LIBRARIES)
    listed = list_methods()
    problems = [
        {"problem": f"method {each.name} of {each.distribution} {each.version}: {each.problem}", "source": None}
        for each in listed
        if each.problem is not None
    ]
    problems += bad_pairs(versions, {name: metadata.requires(name) or [] for name in versions})
    environment = {"python": platform.python_version(), "platform": platform.platform()}
    output.json({"environment": environment, "devices": _devices(), "versions": versions, "problems": problems})
    if not output.as_json:
        rows = table("what", "found")
        facts = environment | versions | {"methods": ", ".join(e.name for e in listed if e.method) or "none"}
        for name, value in facts.items():
            add_row(rows, name, value)
        for device in _devices():
            add_row(rows, "device", device)
        output.show(rows, *(_line(each) for each in problems), _verdict(len(problems)))
    return FAILED if problems else DONE


def _line(problem: Mapping[str, str | None]) -> str:
    source = "" if problem["source"] is None else f" (source: {problem['source']})"
    return f"problem: {problem['problem']}{source}"


def _verdict(count: int) -> str:
    return "No problem found." if not count else f"{count} problem{'s' if count > 1 else ''} found."


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _devices() -> list[str]:
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    threads = torch.get_num_threads()
    return [
        f"cpu, {threads} thread{'s' if threads > 1 else ''}",
        *(f"cuda:{index} {name}" for index, name in enumerate(cuda)),
    ]


def bad_pairs(versions: Mapping[str, str], requires: Mapping[str, list[str]]) -> list[dict[str, str | None]]:
    """Return what is known not to work together: problem and source.

    Args:
        versions: Installed versions, by distribution.
        requires: The requirements that each distribution declares.
    """
    if "torch" not in versions:
        return []
    release, build = _parts(versions["torch"])
    problems: list[dict[str, str | None]] = []
    for name, declared in requires.items():
        pinned = [match[1] for each in declared if (match := re.match(r"torch\s*\(?==\s*([\d.]+)", each))]
        if pinned and name in versions and _parts(pinned[0])[0] != release:
            problems.append(
                _problem(f"{name} {versions[name]} requires torch {pinned[0]}", versions, f"metadata of {name}")
            )
    if "torchaudio" in versions and not _fits(_parts(versions["torchaudio"])[0], release):
        problems.append(_problem(f"torchaudio {versions['torchaudio']} is of another release", versions, _AUDIO))
    for name in ("torchvision", "torchaudio"):
        other = _parts(versions[name])[1] if name in versions else None
        if build and other and other != build:
            text = f"{name} {versions[name]} is built for another device"
            problems.append(_problem(text, versions, _VISION_BUILDS))
        if build == "cpu" and other == "" and platform.machine() == "x86_64":  # for others, PyPI has builds for the CPU
            text = f"{name} {versions[name]} names no build, as on PyPI, which builds for CUDA"
            problems.append(_problem(text, versions, _OF_PYPI[name]))
    return problems


def _problem(text: str, versions: Mapping[str, str], source: str) -> dict[str, str | None]:
    fix = "install the releases that belong together, from one index"
    return {"problem": f"{text}. Found torch {versions['torch']}: {fix}", "source": source}


def _fits(audio: str, release: str) -> bool:
    """Return whether a torchaudio goes with a torch: from 2.11 on it does with later ones, too."""
    if _minor(audio) >= (2, 11):
        return _minor(release) >= _minor(audio)
    return _minor(audio) == _minor(release)


def _parts(version: str) -> tuple[str, str]:
    release, _, build = version.partition("+")
    return release, build


def _minor(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])


COMMAND = Command("doctor", "report environment, devices, broken plugins and versions at odds", _add_arguments, _run)
