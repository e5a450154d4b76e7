"""Lists of UPMC Food-101, pictures with a title and a class each: csv files (Kaggle), json files or jsonl files.

The json files are those of the code of Guo et al. (NeurIPS 2024), the jsonl files those of MMBT (Kiela et al., 2019)
and of the code that builds on it, such as QMF (Zhang et al., ICML 2023).
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
from recipe_common.data.samples.splits import Split, check_disjoint, hold_out
from recipe_common.errors import RecipeError
from recipe_common.files import listing

FORMATS = ("csv", "json", "jsonl")
FILES = {
    "csv": {"train": "texts/train_titles.csv", "test": "texts/test_titles.csv"},
    "json": {"train": "train.json", "dev": "dev.json", "test": "test.json"},
    "jsonl": {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"},
}
HEADER = ["image_path", "text", "label"]
JSON_KEYS = {"json": ("id", "img_path", "label", "text_tokens"), "jsonl": ("img", "img", "label", "text")}
"""Keys of name, picture, class and title in a record."""
SWALLOWED_ROW = re.compile(r"\n[^,\n]+\.(jpe?g|png|txt),", re.IGNORECASE)
EXCERPT = 60
"""Characters of a damaged line in messages."""
LONGEST_ROW = 200
"""Lines of a row at most, line breaks in its title included."""
HINTS = {
    "meta": "the layout of ETH Food-101, another dataset, which has no texts",
    "meta.json": "the layout of ETH Food-101, another dataset, which has no texts",
    "data/train-00000-*.parquet": "a copy of ETH Food-101, another dataset, which has no texts",
    "texts_txt": "the first release with one text file per picture, whose titles stand in the lists on Kaggle",
    "my_train_food.txt": "lists of alternating unimodal adaptation, without titles; those on Kaggle have them",
    "food101_train.arrow": "arrow files of missing_aware_prompts, made of the lists on Kaggle",
}
"""What a folder without lists is, by pattern of its files."""
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
        wanted: One of `FORMATS`, or `auto`: the first of them whose lists exist.

    Raises:
        RecipeError: With file and line, for a missing or damaged list, an unknown label, or a picture with two labels.
    """
    chosen, notes = _choose(root, wanted)
    read = _READERS[chosen]
    parts: dict[str, tuple[Row, ...]] = {"dev": ()}
    for part, name in FILES[chosen].items():
        path = root / name
        if part != "dev" or path.is_file():
            parts[part], repeated = _without_repetition(read(path, part, classes, notes), path)
            notes += [f"repeated rows, which count once: {repeated:,} in {path}"] * (repeated > 0)
    lists = TitleLists(root, chosen, **parts, notes=())
    check_disjoint(
        {"training": lists.train, "test": lists.test},
        picture_path,
        of=f"lists of {root}",
        unit="picture",
        fix="download the lists again",
    )
    return attrs.evolve(lists, notes=(*notes, *_notes_on_titles([title(row) for row in lists.rows])))


def split_titles(lists: TitleLists, share: float, seed: int, *, validation: bool = True) -> tuple[Split, str]:
    """Return train, validation and test, and a line about the origin of the validation part.

    The list `dev` is the validation part if none of its pictures is in the test list; otherwise, and without that list,
    `share` of every class of the training list is held out. Pictures of `dev` are not trained on.

    Args:
        lists: Lists as `read_titles` returns them.
        share: Share of every class that is held out, above 0 and below 1.
        seed: Seed of the choice of samples that are held out.
        validation: Whether there is a validation part; otherwise all of the training list is for training, and
            `dev` is not used.

    Raises:
        RecipeError: If `share` is out of range, or if it rounds to no sample at all.
    """
    if not validation:
        return Split(lists.train, (), lists.test), "as listed; nothing held out for validation"
    listed = FILES[lists.kind].get("dev", "")
    dev, test = ({picture_path(row) for row in rows} for rows in (lists.dev, lists.test))
    if dev and not dev & test:
        train = tuple(row for row in lists.train if picture_path(row) not in dev)
        return Split(train, lists.dev, lists.test), f"as listed, {listed} for validation"
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
    reason = f"; {listed} shares pictures with {FILES[lists.kind]['test']} and is not used" if dev else ""
    return Split(train, val, lists.test), f"for validation {share:.0%} of every class of train, seed {seed}{reason}"


def _choose(root: Path, wanted: str) -> tuple[str, list[str]]:
    present = {name: [path for path in files.values() if (root / path).is_file()] for name, files in FILES.items()}
    complete = [name for name in FORMATS if {FILES[name]["train"], FILES[name]["test"]} <= set(present[name])]
    if wanted in complete:
        return wanted, []
    if wanted == "auto" and complete:
        first, *others = complete
        found = (
            f"there are {' and '.join(complete)} lists; the {first} lists are read (--lists {' or '.join(others)}: the "
        )
        return first, [f"{found}others)"] * bool(others)
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
    kind = next((kind for pattern, kind in HINTS.items() if next(root.glob(pattern), None) is not None), None)
    if kind is not None:
        return f"; that is {kind}"
    incomplete = [path for paths in present.values() for path in paths]
    if incomplete:
        return f"; of the lists there is only {' and '.join(incomplete)}"
    above = [name for name in FORMATS if (root.parent / FILES[name]["train"]).is_file()]
    return f"; the lists are in {root.parent}" if above else ""


def _read_csv(path: Path, part: str, classes: Sequence[str], notes: list[str]) -> Iterator[tuple[Row, str]]:
    with _readable(path, "csv"), path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = file.readlines()
    unpaired: list[str] = []
    texts: list[str] = []
    with _readable(path, "csv"):
        for number, cells in _csv_rows(lines, unpaired):
            where = f"{path}:{number}"
            if not any(cell.strip() for cell in cells) or (
                number == 1 and [cell.strip().lower() for cell in cells] == HEADER
            ):
                continue
            if cells[0].strip().lower().endswith(".txt"):
                texts.append(cells[0].strip())
                cells[0] = f"{texts[-1][:-4]}.jpg"
            yield _csv_row(cells, part, classes, where), where
    for found, meaning in (
        (unpaired, "rows with an unpaired quote, each read as one line"),
        (texts, "rows that name a text file, read as the picture of the same name"),
    ):
        notes += [f"{meaning}: {len(found):,} in {path}, such as {found[0]}"] if found else []


def _csv_rows(lines: Sequence[str], unpaired: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line of each row, and its cells.

    A row whose quote would swallow rows below, or is open at the end of the file, is one line without quoting, so that
    no row is lost.

    Args:
        lines: Lines of the file, with their ends.
        unpaired: Gets the name of each row that is read as one line.
    """
    start = 0
    while start < len(lines):
        row = lines[start : start + (LONGEST_ROW if '"' in lines[start] else 1)]
        reader = csv.reader([*row, ""])
        try:
            cells = next(reader)
            # A reader that goes on to the added line is inside of a quote.
            swallows = reader.line_num > len(row) or bool(SWALLOWED_ROW.search(",".join(cells)))
        except csv.Error:
            if not SWALLOWED_ROW.search("".join(lines[start : start + LONGEST_ROW])):
                raise
            swallows = True
        if swallows:
            cells = lines[start].replace(',"', ",", 1).rstrip("\r\n").split(",")
            unpaired.append(cells[0])
        start += 1 if swallows else reader.line_num
        yield start, cells


def _csv_row(cells: list[str], part: str, classes: Sequence[str], where: str) -> Row:
    """Return a row with the first cell as file and the last as class; commas between belong to an unquoted title."""
    if len(cells) < 3:
        raise RecipeError(f"{where} should be `file,title,class`", found=repr(",".join(cells)), fix="correct the line")
    name, label, text = cells[0].strip(), cells[-1].strip(), ",".join(cells[1:-1])
    _check_label(label, classes, where)
    return Row(f"{part}/{name}", label, (f"images/{part}/{label}/{name}", _one_line(text)))


def _read_json(path: Path, part: str, classes: Sequence[str], notes: list[str]) -> Iterator[tuple[Row, str]]:
    with _readable(path, "json"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, list):
        raise RecipeError(f"{path} should hold a list of records", found=type(content).__name__, fix="restore the file")
    for number, record in enumerate(content):
        where = f"{path}, record {number:,}"
        yield _json_row(record, "json", classes, where), where


def _read_jsonl(path: Path, part: str, classes: Sequence[str], notes: list[str]) -> Iterator[tuple[Row, str]]:
    with _readable(path, "jsonl"), path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield _json_row(_record(line, where), "jsonl", classes, where), where


def _record(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        # The text of a syntax error has line 1 for any line of the file.
        reason = f"{error.msg}: column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise RecipeError(
            f"{where} should be a json record", found=f"{_excerpt(line)} ({reason})", fix="download the file again"
        ) from error


def _excerpt(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= EXCERPT else f"{text[:EXCERPT]}...")


def _json_row(record: Any, kind: str, classes: Sequence[str], where: str) -> Row:
    keys = JSON_KEYS[kind]
    missing = [key for key in dict.fromkeys(keys) if not isinstance(record, dict) or key not in record]
    if missing:
        raise RecipeError(
            f"{where} should have {', '.join(dict.fromkeys(keys))}",
            found=f"no {', '.join(missing)}",
            fix="download the file again",
        )
    name, picture, label, words = (record[key] for key in keys)
    _check_label(str(label), classes, where)
    if not isinstance(words, str | list):
        raise RecipeError(f"{where} should have words in {keys[-1]}", found=repr(words), fix="correct the record")
    text = words if isinstance(words, str) else " ".join(map(str, words))
    return Row(str(name), str(label), (str(picture), _one_line(text)))


_READERS = {"csv": _read_csv, "json": _read_json, "jsonl": _read_jsonl}


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
