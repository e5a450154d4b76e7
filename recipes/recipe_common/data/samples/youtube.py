"""Names and lists of clips that are cut from YouTube videos, as in Kinetics-Sounds and VGGSound."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from recipe_common.data.samples.audiovisual import index_files
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.splits import Split
from recipe_common.errors import RecipeError

CLIP_NAME = re.compile(r"([\w-]{11})_(\d{1,6})(?:_\d{1,6})?(?:\.(?:mp4|wav|npy|pkl))?")
LIST_HEADERS = frozenset({"name", "clip", "label", "class"})
VGGSOUND_COLUMNS = "video id, start second, label, train or test"


def clip_key(name: str) -> str:
    """Return video id and start second without padding, the same for all of `ID_30`, `ID_000030_000040`, `ID_30.mp4`.

    Ids have 11 characters and may hold `_` themselves. Another name is its own key.
    """
    match = CLIP_NAME.fullmatch(name)
    return f"{match[1]}_{int(match[2])}" if match else name


def class_name(text: str) -> str:
    """Return a class name as Kinetics-Sounds lists write it: `Playing  piano` becomes `playing_piano`."""
    return "_".join(text.lower().replace("_", " ").split())


def read_clip_list(path: Path, classes: Sequence[str]) -> tuple[Row, ...]:
    """Read a list of clips that says its columns by their content.

    A line holds, separated by commas or spaces, one clip name and one label, which is a class name in any column or
    else a class index in the last one: `ID_000012_000022,10,17`, `ID_45 3`, `playing_piano,ID_45`. A header, a
    byte-order mark, CRLF and empty lines are accepted. A clip that is listed twice with one label counts once.

    Args:
        path: The list.
        classes: Class names in the order of their indices.

    Raises:
        RecipeError: With file and line number, for a line without clip or label, a label out of range, or a clip with
            two labels.
    """
    rows: dict[str, Row] = {}
    for number, line in enumerate(_lines(path), 1):
        cells = [cell.strip() for cell in (line.split(",") if "," in line else line.split())]
        if not any(cells) or (number == 1 and LIST_HEADERS & set(cells)):
            continue
        _add(rows, _row(cells, classes, f"{path}:{number}"), f"{path}:{number}")
    if not rows:
        raise RecipeError(f"Expected lines such as `ID_000012_000022,10,17`. Found none in {path}. Fix: restore it.")
    return tuple(rows.values())


def read_vggsound(path: Path) -> Split:
    """Read `vggsound.csv`: video id, start second, label (quoted if it holds a comma), `train` or `test`; no header.

    Returns:
        The split, without validation rows.

    Raises:
        RecipeError: With file and line number, for a line that is not so, or a clip with two labels.
    """
    parts: dict[str, dict[str, Row]] = {"train": {}, "test": {}}
    for number, cells in _csv(path):
        where = f"{path}:{number}"
        if len(cells) != 4 or cells[3] not in parts or not cells[1].isdigit() or not all(cells):
            raise RecipeError(f"Expected {VGGSOUND_COLUMNS} at {where}. Found {','.join(cells)!r}. Fix: correct it.")
        _add(parts[cells[3]], Row(f"{cells[0]}_{cells[1]}", cells[2]), where)
    for name, rows in parts.items():
        if not rows:
            raise RecipeError(f"Expected {name} rows in {path}. Found none. Fix: restore the file, it is cut short.")
    return disjoint(Split(tuple(parts["train"].values()), (), tuple(parts["test"].values())))


def read_named_list(path: Path) -> tuple[Row, ...]:
    """Read a csv file of clip name and class name, such as `ID_000030.mp4,"playing theremin, solo"`; no header.

    Raises:
        RecipeError: With file and line number, for a line that is not so, or a clip with two labels.
    """
    rows: dict[str, Row] = {}
    for number, cells in _csv(path):
        if len(cells) != 2 or not CLIP_NAME.fullmatch(cells[0]) or not cells[1]:
            raise RecipeError(
                f"Expected `ID_000030.mp4,label` at {path}:{number}. Found {','.join(cells)!r}. Fix: correct the line."
            )
        _add(rows, Row(cells[0].removesuffix(".mp4"), cells[1]), f"{path}:{number}")
    if not rows:
        raise RecipeError(f"Expected lines such as `ID_000030.mp4,label`. Found none in {path}. Fix: restore it.")
    return tuple(rows.values())


def read_database(path: Path, classes: Sequence[str]) -> Split:
    """Read a json file `{"labels": [...], "database": {clip: {"subset": ..., "label": ...}}}`.

    Subsets are `training`, `testing` and `validation`; without `testing`, `validation` is the test part, as Kinetics
    has no other.

    Raises:
        RecipeError: If the file is not so, or has a label that is not among `classes`.
    """
    try:
        database = json.loads(path.read_text(encoding="utf-8-sig"))["database"]
        rows = {name: (entry["subset"], class_name(entry["label"])) for name, entry in database.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f'Expected {{"database": {{clip: {{"subset": ..., "label": ...}}}}}} in {path}. '
            f"Found {type(error).__name__}: {error}. Fix: restore the file."
        ) from error
    known = {"training", "validation", "testing"}
    for name, (subset, label) in rows.items():
        if subset not in known or label not in classes:
            raise RecipeError(
                f"Expected a subset of {', '.join(sorted(known))} and one of {len(classes)} labels in {path}. "
                f"Found {subset!r} and {label!r} for {name}. Fix: correct the entry."
            )
    part = {name: tuple(Row(clip, label) for clip, (of, label) in rows.items() if of == name) for name in known}
    if not part["testing"]:
        part |= {"testing": part["validation"], "validation": ()}
    return disjoint(Split(part["training"], part["validation"], part["testing"]))


def rows_of_folders(folders: Iterable[Path], endings: Sequence[str], classes: Sequence[str]) -> tuple[Row, ...]:
    """List the clips in folders that are named after classes, each once and sorted by name; other folders do not count.

    Raises:
        RecipeError: If a clip is in the folders of two classes.
    """
    rows: dict[str, Row] = {}
    for folder in folders:
        label = class_name(folder.name)
        if label in classes:
            for path in index_files([folder], endings, clip_key).values():
                _add(rows, Row(path.name if path.is_dir() else path.stem, label), str(path))
    return tuple(rows[key] for key in sorted(rows))


def disjoint(split: Split) -> Split:
    """Return the split.

    Raises:
        RecipeError: If a clip is in two parts, however its name is written.
    """
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = _keys(getattr(split, one)) & _keys(getattr(split, other))
        if shared:
            raise RecipeError(
                f"Expected {one} and {other} without a common clip. Found {len(shared)}, such as {min(shared)}. "
                "Fix: restore the lists."
            )
    return split


def _keys(rows: Iterable[Row]) -> set[str]:
    return {clip_key(row.name) for row in rows}


def _row(cells: Sequence[str], classes: Sequence[str], where: str) -> Row:
    names = [cell for cell in cells if CLIP_NAME.fullmatch(cell)]
    if len(names) != 1 or len(cells) < 2:
        raise RecipeError(
            f"Expected one clip name such as ID_000012_000022, and a label, at {where}. Found {','.join(cells)!r}. "
            "Fix: correct the line."
        )
    named = [class_name(cell) for cell in cells if class_name(cell) in classes]
    if named:
        return Row(names[0].removesuffix(".mp4"), named[0])
    if not cells[-1].isdigit() or int(cells[-1]) >= len(classes):
        raise RecipeError(
            f"Expected a label from 0 to {len(classes) - 1}, or a class name, at {where}. Found {cells[-1]!r}. "
            "Fix: correct the line, or pass the list of this dataset."
        )
    return Row(names[0].removesuffix(".mp4"), classes[int(cells[-1])])


def _add(rows: dict[str, Row], row: Row, where: str) -> None:
    before = rows.setdefault(clip_key(row.name), row)
    if before.label != row.label:
        raise RecipeError(
            f"Expected one label per clip. Found {row.name} with {before.label!r} and, at {where}, {row.label!r}. "
            "Fix: remove one of them."
        )


def _csv(path: Path) -> Iterable[tuple[int, list[str]]]:
    for number, cells in enumerate(csv.reader(_lines(path)), 1):
        values = [cell.strip() for cell in cells]
        if any(values):
            yield number, values


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Expected a readable list. Found {path}: {error}. Fix: restore the file.") from error
