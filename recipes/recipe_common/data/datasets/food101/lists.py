"""Lists of UPMC Food-101, pictures with a title and a class each: csv files (Kaggle) or json files.

The json files are those of the code of Guo et al. (NeurIPS 2024).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from recipe_common.data.readers.non_files import check_file
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.splits import Split, hold_out
from recipe_common.errors import RecipeError
from recipe_common.files import listing

FORMATS = ("csv", "json")
FILES = {
    "csv": {"train": "texts/train_titles.csv", "test": "texts/test_titles.csv"},
    "json": {"train": "train.json", "dev": "dev.json", "test": "test.json"},
}
HEADER = ["image_path", "text", "label"]
JSON_KEYS = ("id", "img_path", "label", "text_tokens")
SWALLOWED_ROW = re.compile(r"\n[^,\n]+\.(jpe?g|png),", re.IGNORECASE)
UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
LINK = re.compile(r"https?://\S+")
RETWEET = re.compile(r"^RT\s+")


@attrs.frozen
class TitleLists:
    """The lists of a dataset.

    In every row `name` identifies the picture, and `extra` is its path relative to the root and its title.

    Attributes:
        root: Folder of the dataset.
        kind: One of `FORMATS`.
        train: Rows for training.
        dev: Rows for validation; () if there is no such list.
        test: Rows for the test.
        notes: Lines for the start of a run about irregular rows.
    """

    root: Path
    kind: str
    train: tuple[Row, ...]
    dev: tuple[Row, ...]
    test: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows."""
        return (*self.train, *self.dev, *self.test)


def picture_path(row: Row) -> str:
    """Return the path of the picture of a row, relative to the root."""
    return row.extra[0]


def title(row: Row) -> str:
    """Return the title of a row."""
    return row.extra[1]


def clean_title(text: str) -> str:
    """Return a title without retweet mark, links and hash signs.

    Source: code of BalanceBenchmark, which drops all text after a link as well.
    """
    return LINK.sub("", RETWEET.sub("", text)).replace("#", "").strip()


def read_titles(root: Path, classes: Sequence[str], wanted: str = "auto") -> TitleLists:
    """Read the lists under `root`.

    Args:
        root: Folder of the dataset, with `texts` and `images`, or with `train.json` and `test.json`.
        classes: Labels that may occur.
        wanted: One of `FORMATS`, or `auto`: csv if these lists exist, else json.

    Raises:
        RecipeError: With file and line, for a missing or damaged list, an unknown label, or a picture with two labels.
    """
    chosen, notes = _choose(root, wanted)
    read = _read_csv if chosen == "csv" else _read_json
    parts: dict[str, tuple[Row, ...]] = {"dev": ()}
    for part, name in FILES[chosen].items():
        path = root / name
        if part != "dev" or path.is_file():
            parts[part], repeated = _without_repetition(read(path, part, classes), path)
            notes += [f"repeated rows, which count once: {repeated:,} in {path}"] * (repeated > 0)
    lists = TitleLists(root, chosen, **parts, notes=())
    _check_disjoint(lists.train, lists.test, root)
    return attrs.evolve(lists, notes=(*notes, *_notes_on_titles([title(row) for row in lists.rows])))


def split_titles(lists: TitleLists, share: float, seed: int, *, validation: bool = True) -> tuple[Split, str]:
    """Return train, validation and test, and a line about the origin of the validation part.

    `dev.json` is the validation part if none of its pictures is in `test.json`; otherwise, and without that file,
    `share` of every class of the training list is held out. Pictures of `dev.json` are not trained on.

    Args:
        lists: Lists as `read_titles` returns them.
        share: Share of every class that is held out, above 0 and below 1.
        seed: Seed of the choice of samples that are held out.
        validation: Whether there is a validation part; otherwise all of the training list is for training, and
            `dev.json` is not used.

    Raises:
        RecipeError: If `share` is out of range, or if it rounds to no sample at all.
    """
    if not validation:
        return Split(lists.train, (), lists.test), "as listed; nothing held out for validation"
    dev, test = ({picture_path(row) for row in rows} for rows in (lists.dev, lists.test))
    if dev and not dev & test:
        train = tuple(row for row in lists.train if picture_path(row) not in dev)
        return Split(train, lists.dev, lists.test), "as listed, dev.json for validation"
    if not 0 < share < 1:
        raise RecipeError(
            "`--val-share` should be above 0 and below 1", found=f"--val-share {share}", fix="try --val-share 0.1"
        )
    train, val = hold_out(lists.train, share, seed)
    if not val:
        raise RecipeError(
            "The validation part should have samples",
            found=f"none, as --val-share {share} of each class rounds to 0",
            fix="raise --val-share",
        )
    reason = "; dev.json shares pictures with test.json and is not used" if dev else ""
    return Split(train, val, lists.test), f"for validation {share:.0%} of every class of train, seed {seed}{reason}"


def _choose(root: Path, wanted: str) -> tuple[str, list[str]]:
    present = {name: [path for path in files.values() if (root / path).is_file()] for name, files in FILES.items()}
    complete = [name for name in FORMATS if {FILES[name]["train"], FILES[name]["test"]} <= set(present[name])]
    if wanted in complete:
        return wanted, []
    if wanted == "auto" and complete:
        both = ["there are csv and json lists; the csv lists are read (--lists json: the others)"] * (len(complete) > 1)
        return complete[0], both
    raise RecipeError(
        f"{root} should hold {' or '.join(_layout(name) for name in FORMATS if wanted in ('auto', name))}",
        found=listing(root) + _hint(root, present),
        fix="point --data-root to the folder that holds them, or leave it out to train on a small synthetic set",
    )


def _layout(name: str) -> str:
    pictures = "images/{train,test}/CLASS/*.jpg" if name == "csv" else "the pictures listed in them"
    return f"{FILES[name]['train']} and {FILES[name]['test']} with {pictures}"


def _hint(root: Path, present: dict[str, list[str]]) -> str:
    """Return a clause about a likely mistake with the data root, or ""."""
    if (root / "meta").is_dir() or (root / "meta.json").is_file():
        return "; that is the layout of ETH Food-101, another dataset, which has no texts"
    incomplete = [path for paths in present.values() for path in paths]
    if incomplete:
        return f"; of the lists there is only {' and '.join(incomplete)}"
    above = [name for name in FORMATS if (root.parent / FILES[name]["train"]).is_file()]
    return f"; the lists are in {root.parent}" if above else ""


def _read_csv(path: Path, part: str, classes: Sequence[str]) -> Iterator[tuple[Row, str]]:
    with _readable(path, "csv"), path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(lines)
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if reader.line_num == 1 and [cell.strip().lower() for cell in cells] == HEADER:
                continue
            yield _csv_row(cells, part, classes, where), where


def _csv_row(cells: list[str], part: str, classes: Sequence[str], where: str) -> Row:
    """Return a row with the first cell as file and the last as class; commas between belong to an unquoted title."""
    if len(cells) < 3:
        raise RecipeError(f"{where} should be `file,title,class`", found=repr(",".join(cells)), fix="correct the line")
    name, label, text = cells[0].strip(), cells[-1].strip(), ",".join(cells[1:-1])
    if SWALLOWED_ROW.search(text):
        raise RecipeError(
            "Quotes should come in pairs",
            found=f"other rows in the title of {name}, up to {where}, which an unpaired quote opens",
            fix="write such a quote twice",
        )
    _check_label(label, classes, where)
    return Row(f"{part}/{name}", label, (f"images/{part}/{label}/{name}", _one_line(text)))


def _read_json(path: Path, part: str, classes: Sequence[str]) -> Iterator[tuple[Row, str]]:
    with _readable(path, "json"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, list):
        raise RecipeError(f"{path} should hold a list of records", found=type(content).__name__, fix="restore the file")
    for number, record in enumerate(content):
        where = f"{path}, record {number:,}"
        yield _json_row(record, classes, where), where


def _json_row(record: Any, classes: Sequence[str], where: str) -> Row:
    missing = [key for key in JSON_KEYS if not isinstance(record, dict) or key not in record]
    if missing:
        raise RecipeError(
            f"{where} should have {', '.join(JSON_KEYS)}",
            found=f"no {', '.join(missing)}",
            fix="download the file again",
        )
    label, words = str(record["label"]), record["text_tokens"]
    _check_label(label, classes, where)
    if not isinstance(words, str | list):
        raise RecipeError(f"{where} should have words in text_tokens", found=repr(words), fix="correct the record")
    text = words if isinstance(words, str) else " ".join(map(str, words))
    return Row(str(record["id"]), label, (str(record["img_path"]), _one_line(text)))


def _check_label(label: str, classes: Sequence[str], where: str) -> None:
    if label not in classes:
        some = f"{', '.join(classes[:3])}, ... ({len(classes)} classes)"
        raise RecipeError(f"{where} should have one of the labels {some}", found=repr(label), fix="correct the list")


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    check_file(path, f"{path} should be a readable {kind} file", may_be_empty=True)
    try:
        yield
    except (OSError, ValueError, csv.Error) as error:
        raise RecipeError(
            f"{path} should be a readable {kind} file", found=str(error), fix="download it again"
        ) from error


def _without_repetition(rows: Iterable[tuple[Row, str]], path: Path) -> tuple[tuple[Row, ...], int]:
    """Return the rows, and the number of repeated ones that are left out."""
    kept: dict[str, Row] = {}
    repeated = 0
    for row, where in rows:
        other = kept.setdefault(row.name, row)
        repeated += other is not row
        if (other.label, other.extra[0]) != (row.label, row.extra[0]):
            raise RecipeError(
                f"{path} should list every picture once",
                found=f"{row.name} again at {where}, as {row.label} ({row.extra[0]}), before as {other.label} "
                f"({other.extra[0]})",
                fix="correct the list",
            )
    if not kept:
        raise RecipeError(f"{path} should have rows", found="none", fix="download it again")
    return tuple(kept.values()), repeated


def _notes_on_titles(titles: Sequence[str]) -> list[str]:
    empty, damaged = sum(not text for text in titles), sum(UNDECODABLE in text for text in titles)
    notes = [f"empty titles: {empty:,}"] * (empty > 0)
    return notes + [f"titles with bytes that are no UTF-8: {damaged:,}"] * (damaged > 0)


def _check_disjoint(train: Sequence[Row], test: Sequence[Row], root: Path) -> None:
    shared = set(map(picture_path, train)) & set(map(picture_path, test))
    if shared:
        raise RecipeError(
            f"The training and the test list of {root} should have no picture in common",
            found=f"{len(shared):,}, such as {min(shared)}",
            fix="download the lists again",
        )
