"""Takes the pictures of the site in docs/index.md, in Chromium without a window.

make site && python docs/screenshots.py    (needs the command `chromium`, and pillow)

Chromium has no window narrower than 500 pixels, so the page for a phone stands in a frame of 390.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
SITE = DOCS.parent / "build" / "site"
FRAME = '<body style="margin:0"><iframe src="{page}" width="{width}" height="{height}" style="border:0"></iframe>'
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000")
NARROWEST = 500
PICTURES = {"site-desktop": ("start.html", 1280, 1100), "site-phone": ("diagnose.html", 390, 1000)}
"""By name: the page, width and height in pixels."""


def take(page: str, width: int, height: int) -> Image.Image:
    """Return the picture of the top of a page of the site."""
    with tempfile.TemporaryDirectory() as folder:
        picture, frame = Path(folder) / "picture.png", Path(folder) / "frame.html"
        frame.write_text(FRAME.format(page=(SITE / page).as_uri(), width=width, height=height), encoding="utf-8")
        size = f"--window-size={max(width, NARROWEST)},{height}"
        command = ["chromium", *OPTIONS, size, f"--screenshot={picture}", frame.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        with Image.open(picture) as taken:
            return taken.convert("RGB").crop((0, 0, width, height))


def main() -> None:
    """Write images/site-*.png with 128 colours each, which keeps them small."""
    for name, where in PICTURES.items():
        reduced = take(*where).quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        reduced.save(DOCS / "images" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
