"""Lists of pictures with titles: both layouts, their edge cases, and what is wrong with damaged ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from recipe_common.data.datasets.food101.lists import clean_title, picture_path, read_titles, split_titles, title
from recipe_common.errors import RecipeError

from .food101_tree import CLASSES, record, write_json, write_kaggle


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_kaggle(tmp_path)
    return tmp_path


def train_list(root: Path) -> Path:
    return root / "texts" / "train_titles.csv"


def test_a_kaggle_list_is_read(root: Path) -> None:
    lists = read_titles(root, CLASSES)
    assert (lists.kind, len(lists.train), len(lists.dev), len(lists.test)) == ("csv", 16, 0, 8)
    row = lists.train[5]
    assert (row.name, row.label) == ("train/cheese_plate_1.jpg", "cheese_plate")
    assert picture_path(row) == "images/train/cheese_plate/cheese_plate_1.jpg"
    assert title(row) == 'The "best" cheese_plate, ever | Site train 1'
    assert all((root / picture_path(row)).is_file() for row in lists.rows)
    assert lists.notes == ()


@pytest.mark.parametrize("header", [("Image_path", "text", "label"), ("image_path", "Text", " label")])
def test_a_header_is_no_row(tmp_path: Path, header: tuple[str, ...]) -> None:
    write_kaggle(tmp_path, header=header)
    assert len(read_titles(tmp_path, CLASSES).train) == 16


def test_crlf_byte_order_mark_empty_lines_and_line_breaks_in_titles_are_accepted(root: Path) -> None:
    text = '\ufeffa.jpg,"one\r\ntwo  three",gyoza\r\n\r\nb.jpg, plain ,gyoza \r\n'
    train_list(root).write_text(text, encoding="utf-8", newline="")
    rows = read_titles(root, CLASSES).train
    assert [(row.name, title(row), row.label) for row in rows] == [
        ("train/a.jpg", "one two three", "gyoza"),
        ("train/b.jpg", "plain", "gyoza"),
    ]


def test_commas_without_quotes_belong_to_the_title(root: Path) -> None:
    train_list(root).write_text("a.jpg,easy, quick, good,gyoza\n")
    assert title(read_titles(root, CLASSES).train[0]) == "easy, quick, good"


@pytest.mark.parametrize("ending", ["jpg", "txt"])
@pytest.mark.parametrize("below", [1, 5_000])
def test_a_quote_that_never_closes_swallows_no_row(root: Path, below: int, ending: str) -> None:
    """As in the list on Kaggle: the rows below count, although a csv reader takes them for a part of the title."""
    rows = "".join(f"b{number}.{ending},the {number}. of many,gyoza\n" for number in range(below))
    train_list(root).write_text(f'a.jpg,"an open one, ever,gyoza\n{rows}c.jpg,"two\nlines",gyoza\nd.jpg,z,gyoza\n')
    lists = read_titles(root, CLASSES)
    assert [row.name for row in lists.train] == [
        f"train/{name}.jpg" for name in ("a", *(f"b{number}" for number in range(below)), "c", "d")
    ]
    assert [title(row) for row in (*lists.train[:2], *lists.train[-2:])] == [
        "an open one, ever", "the 0. of many", "two lines", "z"
    ]  # fmt: skip
    assert lists.notes[0] == (
        f"rows with an unpaired quote, each read as one line: 1 in {train_list(root)}, such as a.jpg"
    )
    assert [note for note in lists.notes[1:] if f"{below:,} in" not in note] == []
    assert len(lists.notes) == 1 + (ending == "txt")


@pytest.mark.parametrize("end", ["\n", "", "\r\n", "\n\n"])
def test_a_quote_that_is_open_at_the_end_of_the_file(root: Path, end: str) -> None:
    rows = 'a.jpg,"two\nlines",gyoza\nb.jpg,"an open one, ever,gyoza'
    train_list(root).write_text(f"{rows}{end}", newline="")
    lists = read_titles(root, CLASSES)
    assert [(row.name, title(row), row.label) for row in lists.train] == [
        ("train/a.jpg", "two lines", "gyoza"),
        ("train/b.jpg", "an open one, ever", "gyoza"),
    ]
    assert lists.notes == (
        f"rows with an unpaired quote, each read as one line: 1 in {train_list(root)}, such as b.jpg",
    )


def test_inches_are_no_open_quote(root: Path) -> None:
    train_list(root).write_text('a.jpg,a 9" pie,gyoza\n')
    lists = read_titles(root, CLASSES)
    assert (title(lists.train[0]), lists.notes) == ('a 9" pie', ())


def test_rows_that_name_text_files_stand_for_the_pictures(root: Path) -> None:
    train_list(root).write_text("gyoza_0.txt,x,gyoza\ngyoza_1.jpg,y,gyoza\n")
    lists = read_titles(root, CLASSES)
    assert [picture_path(row) for row in lists.train] == [
        "images/train/gyoza/gyoza_0.jpg",
        "images/train/gyoza/gyoza_1.jpg",
    ]
    note = "rows that name a text file, read as the picture of the same name"
    assert lists.notes == (f"{note}: 1 in {train_list(root)}, such as gyoza_0.txt",)


def write_jsonl(root: Path, parts: Mapping[str, int]) -> None:
    """As MMBT and QMF have them: names of pictures repeat the class."""
    for part, count in parts.items():
        lines = [
            json.dumps(
                {
                    "id": f"{label}_{label}_{number}.jpg",
                    "label": label,
                    "text": f"{label}, | best  site",
                    "img": f"images/{part}/{label}/{label}_{number}.jpg",
                }
            )
            for label in CLASSES
            for number in range(count)
        ]
        (root / f"{part}.jsonl").write_text("\n".join(lines) + "\n\n")


def test_jsonl_lists_are_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {"train": 4, "dev": 1, "test": 2})
    lists = read_titles(tmp_path, CLASSES)
    assert (lists.kind, len(lists.train), len(lists.dev), len(lists.test)) == ("jsonl", 16, 4, 8)
    row = lists.test[2]
    assert (row.label, title(row)) == ("cheese_plate", "cheese_plate, | best site")
    assert picture_path(row) == "images/test/cheese_plate/cheese_plate_0.jpg"
    assert split_titles(lists, 0.1, 0)[1] == "as listed, dev.jsonl for validation"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"id": "a", "label": "gyoza", "img": "a.jpg"}', r"train\.jsonl:1 should have img, label, text.*no text"),
        ('{"img": "a.jpg", "label": "pizza", "text": "x"}', r"train\.jsonl:1 should have one of the labels"),
        ("{", r"train\.jsonl:1 should be a json record\. Found '\{' \(Expecting .*: column 2\)"),
        (
            '{"img": "a.jpg", "label": "gyoza", "text": "x"}\n\n{"img": "b.jpg", "label": "gyoza", "text',
            r"train\.jsonl:3 should be .*Found '.*\"text' \(Unterminated string .*: column 36\): download the file",
        ),
        ("[" * 100_000, r"train\.jsonl:1 should be a json record\. Found '\[{60}\.\.\.' \("),
        ("", r"train\.jsonl should have rows"),
    ],
)
def test_damaged_jsonl_lists_are_explained(tmp_path: Path, content: str, match: str) -> None:
    write_jsonl(tmp_path, {"train": 1, "test": 1})
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(RecipeError, match=match):
        read_titles(tmp_path, CLASSES)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("texts_txt/gyoza/gyoza_0.txt", "one text file per picture"),
        ("my_train_food.txt", "lists of alternating unimodal adaptation, without titles"),
        ("data/train-00000-of-00008.parquet", "ETH Food-101, another dataset"),
        ("food101_train.arrow", "arrow files of missing_aware_prompts"),
    ],
)
def test_other_variants_are_named(tmp_path: Path, file: str, kind: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(RecipeError, match=rf"; that is .*{kind}"):
        read_titles(tmp_path, CLASSES)


def test_what_is_odd_is_said(root: Path) -> None:
    line = b"a.jpg,caf\xe9,gyoza\n"
    train_list(root).write_bytes(line + b"b.jpg,,gyoza\n" + line)
    lists = read_titles(root, CLASSES)
    assert len(lists.train) == 2
    assert lists.notes == (
        f"repeated rows, which count once: 1 in {train_list(root)}",
        "empty titles: 1",
        "titles with bytes that are no UTF-8: 1",
    )


def test_a_picture_with_two_labels_is_refused(root: Path) -> None:
    train_list(root).write_text("a.jpg,x,gyoza\nb.jpg,x,gyoza\na.jpg,x,apple_pie\n")
    with pytest.raises(RecipeError, match=r"train/a\.jpg again at .*train_titles\.csv:3, as apple_pie"):
        read_titles(root, CLASSES)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("a.jpg,gyoza\n", r"train_titles\.csv:1 should be `file,title,class`.*'a\.jpg,gyoza'"),
        ("a.jpg,x,gyoza\nb.jpg,x,pizza\n", r"csv:2 should .*\(4 classes\)\. Found 'pizza'"),
        ("", r"train_titles\.csv should have rows\. Found none"),
        ('a.jpg,"' + "x" * 200_000, r"readable csv file\. Found field"),
    ],
)
def test_damaged_csv_lists_are_explained(root: Path, content: str, match: str) -> None:
    train_list(root).write_text(content)
    with pytest.raises(RecipeError, match=match):
        read_titles(root, CLASSES)


def test_json_lists_are_read(tmp_path: Path) -> None:
    write_json(tmp_path, {"train": 3, "dev": 2, "test": 1})
    lists = read_titles(tmp_path, CLASSES)
    assert (lists.kind, len(lists.train), len(lists.dev), len(lists.test)) == ("json", 12, 8, 4)
    row = lists.dev[0]
    assert (row.name, row.label) == ("dev_apple_pie_0", "apple_pie")
    assert row.extra == ("pictures/dev_apple_pie_0.jpg", "the best apple_pie")


def test_json_titles_may_be_text_and_ids_numbers(tmp_path: Path) -> None:
    write_json(tmp_path, {"train": 1, "test": 1})
    records = [{**record("train", "gyoza", 0), "id": 7, "text_tokens": "good  gyoza"}]
    (tmp_path / "train.json").write_text(json.dumps(records))
    row = read_titles(tmp_path, CLASSES).train[0]
    assert (row.name, title(row)) == ("7", "good gyoza")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"a": 1}, r"train\.json should hold a list of records\. Found dict"),
        ([{"id": 1, "label": "gyoza"}], r"record 0 should have .*\. Found no img_path, text_tokens"),
        (["x"], "Found no id, img_path, label, text_tokens"),
        ([{**record("train", "gyoza", 0), "label": "pizza"}], "Found 'pizza'"),
        ([{**record("train", "gyoza", 0), "text_tokens": 3}], r"words in text_tokens\. Found 3"),
        ([], "Found none"),
    ],
)
def test_damaged_json_lists_are_explained(tmp_path: Path, content: Any, match: str) -> None:
    write_json(tmp_path, {"train": 1, "test": 1})
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=match):
        read_titles(tmp_path, CLASSES)


def test_half_a_json_file_is_explained(tmp_path: Path) -> None:
    write_json(tmp_path, {"train": 1, "test": 1})
    (tmp_path / "train.json").write_text('[{"id": 1')
    with pytest.raises(RecipeError, match=r"train\.json should be a readable json file\. Found "):
        read_titles(tmp_path, CLASSES)


def test_with_both_layouts_csv_is_read_unless_json_is_wanted(root: Path) -> None:
    write_json(root, {"train": 1, "test": 1})
    lists = read_titles(root, CLASSES)
    assert lists.kind == "csv"
    assert lists.notes == ("there are csv and json lists; the csv lists are read (--lists json: the others)",)
    assert read_titles(root, CLASSES, "json").kind == "json"


def test_a_picture_in_both_lists_is_refused(root: Path) -> None:
    write_json(root, {"train": 1, "test": 1})
    (root / "test.json").write_text((root / "train.json").read_text())
    with pytest.raises(RecipeError, match=r"Found 4, such as pictures/train_apple_pie_0\.jpg"):
        read_titles(root, CLASSES, "json")


def test_missing_lists_are_explained(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"images/\{train,test\}/CLASS/\*\.jpg or train\.json .*Found no such folder"):
        read_titles(root / "nowhere", CLASSES)
    with pytest.raises(RecipeError, match=r"Found .*; the lists are in"):
        read_titles(root / "images", CLASSES)
    with pytest.raises(RecipeError, match=r"should hold train\.json and test\.json .*Found images, texts"):
        read_titles(root, CLASSES, "json")
    train_list(root).unlink()
    with pytest.raises(RecipeError, match=r"there is only texts/test_titles\.csv"):
        read_titles(root, CLASSES)


def test_the_other_food_101_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    with pytest.raises(RecipeError, match="ETH Food-101, another dataset, which has no texts"):
        read_titles(tmp_path, CLASSES)


def test_a_share_of_every_class_is_held_out(root: Path) -> None:
    lists = read_titles(root, CLASSES)
    split, origin = split_titles(lists, 0.25, seed=3)
    assert [sum(row.label == label for row in split.val) for label in CLASSES] == [1, 1, 1, 1]
    assert sorted(row.name for row in (*split.train, *split.val)) == sorted(row.name for row in lists.train)
    assert split.test == lists.test
    assert origin == "for validation 25% of every class of train, seed 3"
    assert split_titles(lists, 0.25, seed=4)[0].val != split.val


def test_without_validation_everything_is_trained_on(tmp_path: Path) -> None:
    write_json(tmp_path, {"train": 2, "dev": 1, "test": 1})
    lists = read_titles(tmp_path, CLASSES)
    split, _ = split_titles(lists, 0.1, seed=0, validation=False)
    assert (split.train, split.val, split.test) == (lists.train, (), lists.test)


def test_a_dev_list_is_the_validation_part_and_not_trained_on(tmp_path: Path) -> None:
    write_json(tmp_path, {"train": 2, "dev": 1, "test": 1})
    records = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "dev.json").write_text(json.dumps(records[:3]))
    split, origin = split_titles(read_titles(tmp_path, CLASSES), 0.1, seed=0)
    assert [row.name for row in split.val] == [each["id"] for each in records[:3]]
    assert [row.name for row in split.train] == [each["id"] for each in records[3:]]
    assert "dev.json for validation" in origin


def test_a_dev_list_with_test_pictures_is_not_used(tmp_path: Path) -> None:
    write_json(tmp_path, {"train": 4, "test": 1})
    (tmp_path / "dev.json").write_text((tmp_path / "test.json").read_text())
    split, origin = split_titles(read_titles(tmp_path, CLASSES), 0.25, seed=0)
    assert len(split.val) == 4
    assert all(row.name.startswith("train") for row in split.val)
    assert "dev.json shares pictures with test.json" in origin


@pytest.mark.parametrize(("share", "match"), [(0.0, "above 0"), (1.0, "below 1"), (0.01, "rounds to 0")])
def test_a_share_that_holds_nothing_or_everything_out_is_refused(root: Path, share: float, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        split_titles(read_titles(root, CLASSES), share, seed=0)


def test_titles_are_cleaned() -> None:
    assert clean_title("RT  Best #pie ever https://x.y/z?a=1 again http://q") == "Best pie ever  again"
    assert clean_title("ART of pie") == "ART of pie"


def test_a_list_of_the_kaggle_layout_survives_a_round_trip_through_csv(root: Path) -> None:
    titles = ['He said "yes", twice', "", "a, b, c", "'single'", '"whole"']
    rows = [(f"g_{number}.jpg", text, "gyoza") for number, text in enumerate(titles)]
    with train_list(root).open("w", newline="") as lines:
        csv.writer(lines).writerows(rows)
    assert [title(row) for row in read_titles(root, CLASSES).train] == titles
