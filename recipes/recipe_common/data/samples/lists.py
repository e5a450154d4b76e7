"""Lists of samples in csv files: names and labels."""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

import attrs

from recipe_common.data.readers.non_files import check_file
from recipe_common.errors import RecipeError

HEADER = ["name", "label"]


@attrs.frozen
class Row:
    """A line of a list: a sample and its class, both by name, and further columns, such as the times of an event."""

    name: str
    label: str
    extra: tuple[str, ...] = ()


def read_list(path: Path, classes: Sequence[str]) -> tuple[Row, ...]:
    """Read a csv file with the columns name and label, with or without that header.

    A byte-order mark, CRLF line ends, spaces around values and empty lines are accepted.

    Raises:
        RecipeError: If the file cannot be read, or has a row of another width, an unknown label or a repeated name;
            the message names the line.
    """
    check_file(path, f"{path} should be a readable csv file", may_be_empty=True)
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
        raise RecipeError(f"{path} should be a readable csv file", found=str(error), fix="restore the file") from error
    if not rows:
        raise RecipeError(f"{path} should have rows of `name,label`", found="none", fix="restore the file")
    return tuple(rows.values())


def _checked(cells: list[str], classes: Sequence[str], seen: Collection[str], where: str) -> Row:
    if len(cells) != len(HEADER) or not all(cells):
        raise RecipeError(f"{where} should be `name,label`", found=repr(",".join(cells)), fix="correct the line")
    row = Row(cells[0], cells[1])
    if row.label not in classes:
        raise RecipeError(
            f"The label at {where} should be one of {', '.join(classes)}", found=repr(row.label), fix="correct the line"
        )
    if row.name in seen:
        raise RecipeError(
            "Every clip should be listed once", found=f"{row.name!r} again at {where}", fix="remove the line"
        )
    return row
