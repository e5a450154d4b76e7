"""Pictures of the terminal in the docs: without fonts from elsewhere, without paths of a machine, of these methods."""

from __future__ import annotations

import re
import runpy
from html import unescape
from pathlib import Path

import pytest

from modbalance import list_methods

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = sorted((DOCS / "images").glob("terminal-*.svg"))
PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|work|Users|opt|mnt)/")


def text(picture: Path) -> str:
    """Return what stands in a picture, a line for each piece of text."""
    found = re.findall(r"<text[^>]*>([^<]*)</text>", picture.read_text(encoding="utf-8"))
    return unescape("\n".join(found)).replace("\xa0", " ")


def test_there_is_a_picture_of_each_screen() -> None:
    names = {path.stem.removeprefix("terminal-") for path in PICTURES}
    assert names == {"compare", "diagnosis", "doctor", "methods", "show", "training"}


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_a_picture_asks_no_host_and_names_no_path(picture: Path) -> None:
    content = picture.read_text(encoding="utf-8")

    assert set(re.findall(r"https?://[^\s\"'<)]+", content)) == {"http://www.w3.org/2000/svg"}
    assert "@font-face" not in content
    assert "monospace" in content
    assert not PATH.search(text(picture))
    assert not re.search(r"Linux-\d", text(picture)), "the release of a kernel"


@pytest.mark.parametrize("name", ["methods", "doctor"])
def test_pictures_name_the_methods_that_there_are(name: str) -> None:
    words = set(re.findall(r"\w+", text(DOCS / "images" / f"terminal-{name}.svg")))
    own = {each.name for each in list_methods() if each.distribution == "modbalance"}

    assert own - words == set(), f"run `python docs/terminal.py {name}`"


def test_a_screen_is_what_a_live_view_leaves() -> None:
    screen = runpy.run_path(str(DOCS / "terminal.py"))["screen"]

    assert screen("head\none\ntwo\r\x1b[2K\x1b[1A\x1b[2Kthree\nfour\nend") == ["head", "three", "four", "end"]
    assert screen("\x1b[?25la\nb\x1b[?25h") == ["a", "b"]
