"""The tiny recipe as a script that fails unless one thread is left when the recipe has ended."""

from __future__ import annotations

import sys
from pathlib import Path

from recipe_common.cli import main
from recipes.tiny_recipe import RECIPE

if __name__ == "__main__":
    code = main(RECIPE)
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    sys.exit(code or (f"Expected one thread at the end. Found {names}." if len(names) > 1 else 0))
