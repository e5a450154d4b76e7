"""Takes the pictures of terminal output in the docs: runs the commands, and writes images/terminal-*.svg.

python docs/terminal.py [NAME ...]    (all: a few minutes; needs the extra `recipes`)

The trainings are those of docs/start.md. The pictures need no font from elsewhere, and name no path of the machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, RenderableType
from rich.text import Text

DOCS = Path(__file__).parent
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*|<!--.*?-->\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
FORMAT = FORMAT.replace("Fira Code, monospace", FONTS)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^modbalance (?:recipe|compare) .*$", re.MULTILINE)
CONTROL = re.compile(r"\x1b\[(\d*)A|\x1b\[2K|\x1b\[\?25[lh]|\r")
KERNEL = re.compile(r"Linux-\S+?-(x86_64-\S+|aarch64-\S+)")


def picture(name: str, title: str, content: RenderableType, width: int) -> None:
    """Write images/terminal-NAME.svg.

    Args:
        name: Name of the picture.
        title: The command, which stands in the bar of the window.
        content: The screen.
        width: Columns of the terminal.
    """
    console = Console(record=True, width=width, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(content)
    svg = console.export_svg(title=title, code_format=FORMAT, unique_id=f"terminal-{name}")
    path = DOCS / "images" / f"terminal-{name}.svg"
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


def screen(output: str) -> list[str]:
    """Return the lines that stand on a terminal after ``output``, in which a live view went up and wrote anew."""
    lines, at = [""], 0
    for part in re.split(r"(\n|\x1b\[\d*A|\x1b\[2K|\x1b\[\?25[lh]|\r)", output):
        if part == "\n":
            at += 1
            if at == len(lines):
                lines.append("")
        elif match := CONTROL.fullmatch(part):
            at = max(0, at - int(match[1] or 1)) if part.endswith("A") else at
            lines[at] = "" if part.endswith("2K") else lines[at]
        else:
            lines[at] += part
    return lines


def run(command: str, folder: Path, width: int) -> list[str]:
    """Return the lines on a terminal of ``width`` columns after a command of `modbalance`, in colour."""
    settings = {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | settings,
        stdout=subprocess.PIPE,
        check=True,
    )
    return screen(done.stdout.decode().strip("\n"))  # text mode would make a line feed of a carriage return


def shown(lines: list[str]) -> Text:
    """Return lines with the release of the kernel left out, in the same columns."""
    text = KERNEL.sub(lambda found: f"Linux-{found[1]}".ljust(len(found[0])), "\n".join(lines))
    return Text.from_ansi(text)


def of_command(name: str, command: str, width: int = 100) -> None:
    """Take the picture of one command."""
    with tempfile.TemporaryDirectory() as folder:
        picture(name, f"$ {command}", shown(run(command, Path(folder), width)), width)


def diagnosis() -> None:
    """Take the picture of the diagnosis of docs/start.md."""
    page = {"__name__": "docs"}
    for block in BLOCK.findall((DOCS / "start.md").read_text(encoding="utf-8")):
        exec(block, page)
        if "diagnosis" in page:
            break
    picture("diagnosis", ">>> print(diagnosis)", page["diagnosis"], 110)


def comparison() -> None:
    """Take the pictures of the comparison of docs/start.md: the last training with its table, and `compare`."""
    train, compare = COMMAND.findall((DOCS / "start.md").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        lines = run(train, Path(folder), 120)
        plain = [Text.from_ansi(line).plain.strip() for line in lines]
        first = max(index for index, line in enumerate(plain) if line.startswith("model:"))
        last = next(index for index, line in enumerate(plain) if line.startswith("Written"))
        picture("training", f"$ {train}", shown(lines[first:last]), 120)
        picture("compare", f"$ {compare}", shown(run(compare, Path(folder), 100)), 100)


PICTURES: dict[str, Callable[[], None]] = {
    "methods": lambda: of_command("methods", "modbalance methods --no-cost"),
    "show": lambda: of_command("show", "modbalance show ogm_ge"),
    "doctor": lambda: of_command("doctor", "modbalance doctor"),
    "diagnosis": diagnosis,
    "comparison": comparison,
}


def main(names: list[str]) -> None:
    """Take the pictures of ``names``, or all."""
    for name in names or PICTURES:
        PICTURES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
