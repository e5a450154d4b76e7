"""Leaves out the pictures of runs and comparisons, which take longer than the training of a tiny recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from recipe_common.comparison import compare
from recipe_common.report import html
from recipe_common.report.curves import Picture


@contextmanager
def without_pictures() -> Iterator[None]:
    """Write no file of a picture, and a page without pictures; tests of the report draw them all."""
    with (
        mock.patch.object(Picture, "save", return_value=[]),
        mock.patch.object(compare, "score_figure", return_value=None),
        mock.patch.object(compare, "write_figure", return_value=[]),
        mock.patch.object(html, "_pictures", return_value=""),
    ):
        yield
