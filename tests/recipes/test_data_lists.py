"""Split lists: what is read, what is refused and where, and how rows are split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe_common.data.datasets.cremad import listed_split
from recipe_common.data.samples.lists import Row, read_list
from recipe_common.data.samples.splits import Split, hold_out, random_split, speaker_split
from recipe_common.errors import RecipeError

from .cremad_tree import LABELS, label_of, names, write_list

ROWS = (Row("1042_ABC_HAP_XX", "HAP"), Row("1043_ABC_SAD_XX", "SAD"))


def all_rows(actors: int = 20) -> list[Row]:
    return [Row(name, label_of(name)) for name in names(actors)]


@pytest.mark.parametrize(
    "content",
    [
        b"1042_ABC_HAP_XX,HAP\n1043_ABC_SAD_XX,SAD\n",
        b"1042_ABC_HAP_XX,HAP\r\n1043_ABC_SAD_XX,SAD\r\n",
        b"\xef\xbb\xbf1042_ABC_HAP_XX,HAP\n1043_ABC_SAD_XX,SAD",
        b"name,label\n1042_ABC_HAP_XX,HAP\n1043_ABC_SAD_XX,SAD\n",
        b"\xef\xbb\xbfname,label\r\n1042_ABC_HAP_XX, HAP\r\n\r\n1043_ABC_SAD_XX,SAD \r\n",
    ],
    ids=["LF", "CRLF", "BOM without last line end", "header", "BOM, CRLF, header, spaces, empty line"],
)
def test_every_known_form_of_a_list_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    assert read_list(path, LABELS) == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,HAP\nb,JOY\n", r"label at .*train\.csv:2 should be one of NEU, .*\. Found 'JOY'"),
        (b"name,label\na,HAP\nb,SAD\na,HAP\n", r"Found 'a' again at .*train\.csv:4"),
        (b"a,HAP\nb\n", r"train\.csv:2 should be `name,label`\. Found 'b'"),
        (b"a,HAP,1\n", r"train\.csv:1 should be `name,label`\. Found 'a,HAP,1'"),
        (b"a,HAP\n,SAD\n", r"train\.csv:2 should be `name,label`"),
        (b"\xff\xfe\x00", r"train\.csv should be a readable csv file\. Found 'utf-8' codec"),
        (b"", r"train\.csv should have rows of `name,label`\. Found none"),
        (b"name,label\n", r"train\.csv should have rows of `name,label`\. Found none"),
    ],
)
def test_a_bad_list_is_refused_with_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_list(path, LABELS)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"test\.csv"):
        read_list(tmp_path / "test.csv", LABELS)


@given(order=st.permutations(all_rows(4)), seed=st.integers(0, 100))
def test_holding_out_depends_on_the_set_of_rows_and_the_seed_only(order: list[Row], seed: int) -> None:
    kept, held = hold_out(order, 0.25, seed)
    assert (kept, held) == hold_out(sorted(order, key=lambda row: row.name), 0.25, seed)
    assert set(kept) | set(held) == set(order)
    assert len(kept) + len(held) == len(order)
    assert Counter(row.label for row in held) == dict.fromkeys(LABELS, 2)


def test_another_seed_holds_out_other_rows() -> None:
    assert hold_out(all_rows(), 0.1, seed=0) != hold_out(all_rows(), 0.1, seed=1)


def test_random_split_is_80_10_10_of_every_class() -> None:
    split = random_split(all_rows(), seed=0)
    for part, count in ((split.train, 32), (split.val, 4), (split.test, 4)):
        assert Counter(row.label for row in part) == dict.fromkeys(LABELS, count)


def test_speakers_are_in_one_part_only() -> None:
    split = speaker_split(all_rows(20), lambda name: name[:4], seed=0)
    speakers = [{row.name[:4] for row in part} for part in (split.train, split.val, split.test)]
    assert [len(part) for part in speakers] == [16, 2, 2]
    assert len(set.union(*speakers)) == 20
    assert split != speaker_split(all_rows(20), lambda name: name[:4], seed=1)


def test_two_speakers_cannot_be_split() -> None:
    with pytest.raises(RecipeError, match="at least 3 speakers"):
        speaker_split(all_rows(2), lambda name: name[:4], seed=0)


def write_lists(folder: Path, **parts: list[str]) -> None:
    for part, clips in parts.items():
        write_list(folder / f"{part}.csv", clips)


def part_names(split: Split) -> list[list[str]]:
    return [[row.name for row in part] for part in (split.train, split.val, split.test)]


def test_published_validation_lists_are_used(tmp_path: Path) -> None:
    clips = names(4)
    write_lists(tmp_path, train=clips[:36], my_train=clips[:30], val=clips[30:36], test=clips[36:])
    split, origin = listed_split(tmp_path, LABELS, seed=0)
    assert part_names(split) == [clips[:30], clips[30:36], clips[36:]]
    assert "val.csv" in origin


@pytest.mark.parametrize("name", ["val", "valid"])
def test_without_my_train_the_rest_of_train_is_used(tmp_path: Path, name: str) -> None:
    clips = names(4)
    write_lists(tmp_path, **{"train": clips[:36], name: clips[30:36], "test": clips[36:]})
    assert part_names(listed_split(tmp_path, LABELS, seed=0)[0]) == [clips[:30], clips[30:36], clips[36:]]


def test_without_val_a_ninth_of_every_class_of_train_is_held_out(tmp_path: Path) -> None:
    clips = names(10)
    write_lists(tmp_path, train=clips[:108], test=clips[108:])
    split, origin = listed_split(tmp_path, LABELS, seed=0)
    assert Counter(row.label for row in split.val) == dict.fromkeys(LABELS, 2)
    assert {row.name for row in split.train + split.val} == set(clips[:108])
    assert [row.name for row in split.test] == clips[108:]
    assert "1/9" in origin


def test_a_clip_in_two_lists_is_refused(tmp_path: Path) -> None:
    clips = names(4)
    write_lists(tmp_path, train=clips[:40], test=clips[39:])
    with pytest.raises(RecipeError, match=r"should have no common clip\. Found 1"):
        listed_split(tmp_path, LABELS, seed=0)
