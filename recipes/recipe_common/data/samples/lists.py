"""Lists of clips in csv files."""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

import attrs

from recipe_common.errors import RecipeError

HEADER = ["name", "label"]


@attrs.frozen
class Row:
    """A sample and its class, both by name, and what else its list says of it, such as the times of an event."""

    name: str
    label: str
    extra: tuple[str, ...] = ()


def read_list(path: Path, classes: Sequence[str]) -> tuple[Row, ...]:
    """Read a csv file with the columns name and label, with or without that header.

    A byte-order mark, CRLF line ends, spaces around values and empty lines are accepted.

    Raises:
        RecipeError: With file and line number, for a row of another width, an unknown label or a repeated name.
    """
    rows: dict[str, Row] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            for values in reader:
                cells = [value.strip() for value in values]
                if not any(cells) or (reader.line_num == 1 and cells == HEADER):
                    continue
                row = _checked(cells, classes, rows, f"{path}:{reader.line_num}")
                rows[row.name] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"Expected a readable csv file. Found {path}: {error}. Fix: restore the file.") from error
    if not rows:
        raise RecipeError(f"Expected rows of `name,label`. Found none in {path}. Fix: restore the file.")
    return tuple(rows.values())


def _checked(cells: list[str], classes: Sequence[str], seen: Collection[str], where: str) -> Row:
    if len(cells) != len(HEADER) or not all(cells):
        raise RecipeError(f"Expected `name,label` at {where}. Found {','.join(cells)!r}. Fix: correct the line.")
    row = Row(cells[0], cells[1])
    if row.label not in classes:
        raise RecipeError(
            f"Expected one of the labels {', '.join(classes)} at {where}. Found {row.label!r}. Fix: correct the line."
        )
    if row.name in seen:
        raise RecipeError(f"Expected every clip once. Found {row.name!r} again at {where}. Fix: remove the line.")
    return row
