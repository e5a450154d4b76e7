"""Leaves out the pictures of runs and comparisons, which take longer than the training of a tiny recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from recipe_common.comparison import compare
from recipe_common.report import html
from recipe_common.report.curves import Picture


@contextmanager
def without_pictures() -> Iterator[None]:
    """Write no file of a picture, and a page without pictures; tests of the report draw them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "save", lambda picture, path: [])
        patch.setattr(compare, "score_figure", lambda summary: None)
        patch.setattr(compare, "write_figure", lambda figure, path: [])
        patch.setattr(html, "_pictures", lambda summary: "")
        yield
