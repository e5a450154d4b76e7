"""Names and lists of clips that are cut from YouTube videos."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import attrs

from recipe_common.data.readers.non_files import check_file
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.splits import Split, check_disjoint
from recipe_common.errors import RecipeError

CLIP_NAME = re.compile(r"([\w-]{11})_(\d{1,8})(?:_(\d{1,8}))?(?:\.(?:mp4|wav|npy|pkl))?")
LONGEST = 1_000
"""Length that no clip has in seconds; names with times that are further apart give them in milliseconds."""


def clip_key(name: str) -> str:
    """Return the video id and the start second without padding: one key for `ID_30`, `ID_000030_000040`, `ID_30.mp4`.

    Ids have 11 characters and may hold `_` themselves. Times in milliseconds, as in `ID_30000_40000`, are told by their
    distance. Another name is its own key.
    """
    match = CLIP_NAME.fullmatch(name)
    if not match:
        return name
    start, end = int(match[2]), int(match[3] or 0)
    return f"{match[1]}_{start // 1_000 if end - start >= LONGEST else start}"


@attrs.frozen
class ListedKey:
    """Returns the `clip_key` of a name, and takes `ID_30000` for 30 s if the clip at 30 s alone is listed.

    Args:
        keys: Keys of the listed clips.
    """

    keys: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> "ListedKey":
        """Return it for the names in a list."""
        return cls(frozenset(map(clip_key, names)))

    def __call__(self, name: str) -> str:
        """Return the key."""
        key = clip_key(name)
        if key in self.keys or not key.endswith("000"):
            return key
        in_seconds = key[:-3]
        return in_seconds if in_seconds in self.keys else key


def disjoint(split: Split) -> Split:
    """Return a split after a check that its parts are disjoint.

    Raises:
        RecipeError: If a clip is in two parts, in any spelling of its name.
    """
    check_disjoint(split.parts, lambda row: clip_key(row.name))
    return split


def add_row(rows: dict[str, Row], row: Row, where: str) -> None:
    """Add a clip to rows by key.

    Args:
        rows: Rows so far.
        row: The clip.
        where: Place of the row in its list, for messages.

    Raises:
        RecipeError: If the clip is there with another label, in any spelling of its name.
    """
    before = rows.setdefault(clip_key(row.name), row)
    if before.label != row.label:
        raise RecipeError(
            "Every clip should have one label",
            found=f"{row.name} with {before.label!r} and, at {where}, {row.label!r}",
            fix="remove one of them",
        )


def csv_rows(path: Path) -> Iterable[tuple[int, list[str]]]:
    """Yield the rows of a csv file that are not empty, each after its number from 1.

    Raises:
        RecipeError: If the file cannot be read.
    """
    for number, cells in enumerate(csv.reader(lines_of(path)), 1):
        values = [cell.strip() for cell in cells]
        if any(values):
            yield number, values


def lines_of(path: Path) -> list[str]:
    """Return the lines of a list.

    Raises:
        RecipeError: If the file cannot be read.
    """
    check_file(path, f"{path} should be a readable list", may_be_empty=True)
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} should be a readable list", found=str(error), fix="restore the file") from error
