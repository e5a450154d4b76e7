"""Writes the parts of the docs that come from the code: the option tables. `--check` only compares.

python docs/generate.py [--check]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from modbalance._plugins import load_method

DOCS = Path(__file__).parent
TABLE = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end options -->)", re.DOTALL)


def options_table(name: str) -> str:
    """Return the options of a method as a Markdown table."""
    rows = ["| option | official | paper | meaning |", "|---|---|---|---|"]
    for option, field in load_method(name).options().items():
        values = f"`{field.default!r}` | `{field.metadata['paper']!r}`"
        rows.append(f"| `{option}` | {values} | {field.metadata['doc']} |")
    return "\n".join(rows) + "\n"


def updated(text: str) -> str:
    """Return a page with its tables as the code has them now."""
    return TABLE.sub(lambda match: match[1] + options_table(match[2]) + match[3], text)


def main(check: bool) -> int:
    """Write or compare every page; return 1 if a page was out of date and only compared."""
    status = 0
    for page in sorted(DOCS.rglob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = updated(old)
        if new == old:
            continue
        if check:
            print(f"{page.relative_to(DOCS.parent)} is out of date: run `make docs`")
            status = 1
        else:
            page.write_text(new, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
