"""The page of a comparison opens offline, says what happened, and shows text as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import attrs
import pytest

from recipe_common.report.html import report_page
from recipe_common.report.results import Failure, results_of
from recipe_common.report.summary import Summary, summarize
from recipes.test_statistics import CAPTION, runs

SETTINGS = {"lr": 0.1, "method": "none", "note": "<b>not bold</b>"}
CONFIGS = {
    "runs/none": {"settings": SETTINGS, "run": {"device": "cpu"}, "versions": {"torch": "2.11"}},
    "runs/ogm": {"settings": {**SETTINGS, "method": "ogm"}, "run": {"device": "cpu"}, "versions": {"torch": "2.11"}},
}


class Page(HTMLParser):
    """Collects tags and text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "b"):
            self.cells.append(data)


def with_history(synthetic: bool = True) -> Summary:
    outcomes = runs(none=[0.5, 0.51, 0.52], ogm=[0.7, 0.71, 0.72])
    row = {"train_loss": 1.0, "val_accuracy": 0.5, "val_accuracy_audio": 0.4, "val_accuracy_visual": 0.3}
    finished = [
        attrs.evolve(result, history=[{**old, **row} for old in result.history]) for result in results_of(outcomes)
    ]
    caption = attrs.evolve(CAPTION, synthetic=synthetic)
    return summarize([*finished, Failure("dgl", 0, "killed & <gone>")], ("audio", "visual"), caption)


@pytest.fixture(scope="module")
def text() -> str:
    return report_page(with_history(), CONFIGS, "python recipes/tiny.py --methods none ogm")


def test_every_tag_is_closed_and_the_table_is_whole(text: str) -> None:
    page = Page(text)
    assert page.open == []
    assert page.tags.count("tr") == 1 + 3
    assert "71.0 ± 1.0%" in page.cells
    assert page.tags.count("svg") == 1 + 5


def test_nothing_is_loaded_from_elsewhere(text: str) -> None:
    links = re.findall(r'(?:src|href|url\()\s*=?\s*["\']?([^"\')\s>]+)', text)
    assert all(link.startswith("#") for link in links)
    assert "<script" not in text
    assert "@import" not in text


def test_it_fits_a_phone(text: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert '<div class="scroll"><table>' in text


def test_warnings_and_failures_come_first(text: str) -> None:
    assert text.index("Synthetic data") < text.index("<table>")
    assert text.index("dgl, seed 0, failed: killed &amp; &lt;gone&gt;") < text.index("<table>")
    assert "Synthetic data" not in report_page(with_history(synthetic=False), {}, "")


def test_settings_are_shown_once_and_escaped(text: str) -> None:
    assert "&lt;b&gt;not bold&lt;/b&gt;" in text
    assert text.count("&quot;lr&quot;: 0.1") == 1
    assert text.count("&quot;method&quot;") == 2
    assert "python recipes/tiny.py --methods none ogm" in text


def test_the_same_comparison_gives_the_same_page(text: str) -> None:
    assert report_page(with_history(), CONFIGS, "python recipes/tiny.py --methods none ogm") == text


def test_a_comparison_without_results_has_a_page() -> None:
    summary = summarize([Failure("none", 0, "killed")], ("audio", "visual"), CAPTION)
    page = Page(report_page(summary, {}, "x"))
    assert page.open == []
    assert "svg" not in page.tags
