"""Pages of the documentation: what a reader types."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str | Path, language: str) -> list[str]:
    """Return the blocks of a language without those that have a title.

    Args:
        page: The page, or its path from the root of the repository.
        language: Such as ``"python"``, ``"sh"``, ``"text"``.
    """
    return [code for found, code in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) if found == language]


def command(page: str, start: str) -> str:
    """Return the one command of a page that begins with ``start``, without its comment."""
    lines = "".join(blocks(page, "sh")).splitlines()
    (found,) = (line.split("  #")[0].strip() for line in lines if line.startswith(start))
    return found
