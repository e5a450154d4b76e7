"""The smallest recipe; at its end this process must be down to one thread. Run as a script by one of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

from recipe_common.cli import main
from recipes.tiny_recipe import RECIPE

if __name__ == "__main__":
    code = main(RECIPE)
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    sys.exit(code or (f"Expected one thread at the end. Found {names}." if len(names) > 1 else 0))
