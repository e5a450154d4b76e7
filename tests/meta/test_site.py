"""The site builds without a warning, asks no other host, and has every page and every name of the public interface."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import modbalance
from modbalance import hookspecs

ROOT = Path(__file__).parents[2]
SCRIPT_OR_PICTURE = r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]+)"'
STYLE_OR_ICON = r'<link(?![^>]*rel="canonical")[^>]*\shref="([^"]+)"'
RESOURCE = re.compile(f"{SCRIPT_OR_PICTURE}|{STYLE_OR_ICON}")
PAGES_OUTSIDE = {"CONTRIBUTING.md", "SECURITY.md", "findings/README.md"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    settings = {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def resources(site: Path) -> Iterator[str]:
    for page in site.rglob("*.html"):
        for one, other in RESOURCE.findall(page.read_text(encoding="utf-8")):
            yield one or other


def test_no_page_asks_another_host(site: Path) -> None:
    found = set(resources(site))

    assert any(name.endswith(".css") for name in found)
    assert sorted(name for name in found if "//" in name) == []
    assert sorted(str(page.relative_to(site)) for page in site.rglob("*.html") if "mermaid" in page.read_text()) == []


def test_every_page_stands_on_the_site(site: Path) -> None:
    written = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    expected = [
        path.parent / "index.html" if path.name == "README.md" else path.with_suffix(".html") for path in written
    ]

    assert sorted(str(path) for path in expected if not (site / path).is_file()) == []
    assert len([*(site / "project").glob("*.html")]) == len(PAGES_OUTSIDE)


def test_the_reference_has_every_public_name_and_every_hook(site: Path) -> None:
    headings = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    identifiers = set(re.findall(r'id="(modbalance[\w.]*)"', headings))
    last = {identifier.rsplit(".", 1)[-1] for identifier in identifiers}

    assert sorted({*modbalance.__all__, *hookspecs.HOOKS} - last - {"hookimpl"}) == []
