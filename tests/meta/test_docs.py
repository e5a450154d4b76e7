"""The documents are true: their code runs, their tables are those of the code, their links lead to files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support.pages import blocks
from support.training import audio_visual, batches

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def setting() -> dict[str, Any]:
    """Return what the pages take for granted, imports not among it: a model with three children, and loaders."""
    model = audio_visual()

    def forward(audio: torch.Tensor, visual: torch.Tensor) -> Any:
        return type(model).forward(model, audio.squeeze(1), visual)

    model.forward = forward  # type: ignore[method-assign]
    loader = [(audio.unsqueeze(1), visual, target) for (audio, visual), target in batches(model, 4)]
    return {
        "model": model,
        "loader": loader,
        "val_loader": loader,
        "__name__": "docs",
    }


SLOW = {"docs/start.md", "docs/migration.md"}


def named(pages: list[Path]) -> list[Any]:
    names = {page: str(page.relative_to(ROOT)) for page in pages}
    return [pytest.param(page, id=name, marks=pytest.mark.slow if name in SLOW else ()) for page, name in names.items()]


@pytest.mark.parametrize("page", named([page for page in PAGES if blocks(page, "python")]))
def test_python_blocks_run(page: Path) -> None:
    namespace = setting()
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), namespace)
    assert len(namespace) > len(setting())


TAKEN_FOR_GRANTED = re.compile(r"stands? for yours|stand for [`\w, ]*yours|`model` has the children")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_a_page_says_which_names_stand_for_those_of_the_reader(page: Path) -> None:
    nodes = [node for code in blocks(page, "python") for node in ast.walk(ast.parse(code))]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {each.id for each in names if isinstance(each.ctx, ast.Store)}
    bound |= {each.arg for each in nodes if isinstance(each, ast.arg)}
    used = {each.id for each in names if isinstance(each.ctx, ast.Load)}
    text = page.read_text(encoding="utf-8")
    assert not (used - bound) & {"model", "loader", "val_loader"} or TAKEN_FOR_GRANTED.search(text)


def test_both_sides_of_the_readme_diff_run() -> None:
    (diff,) = blocks(ROOT / "README.md", "diff")
    for dropped in "+-":
        lines = [line[1:] for line in diff.splitlines() if not line.startswith(dropped)]
        namespace = setting() | {"torch": torch, "nn": nn, "epochs": 1}
        before = {name: value.clone() for name, value in namespace["model"].state_dict().items()}
        exec("\n".join(lines), namespace)
        after = namespace["model"].state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target for target in LINK.findall(prose) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.slow
def test_generated_tables_are_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| `alpha` | `0.8` |" in (ROOT / "docs" / "methods" / "ogm_ge.md").read_text(encoding="utf-8")


def test_commands_of_the_readme_exist() -> None:
    targets = re.findall(r"^make (\w+)", "\n".join(blocks(ROOT / "README.md", "sh")), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
