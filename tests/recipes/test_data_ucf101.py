"""The folders and lists of UCF-101: every layout, the validation groups, and every kind of bad list."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe_common.data.datasets.ucf101 import find_folders, hold_out_groups, read_classes, read_clips, read_split
from recipe_common.data.samples.lists import Row
from recipe_common.errors import RecipeError

from .ucf101_tree import CLASSES, names, write_clip, write_lists


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("rgb", ["jpegs_256", "ucf101_jpegs_256/jpegs_256", "ucf101_jpegs_256", "jpegs", "visual"])
@pytest.mark.parametrize("flow", ["tvl1_flow", "ucf101_tvl1_flow/tvl1_flow", "ucf101_tvl1_flow", "flow"])
@pytest.mark.parametrize("lists", [".", "ucfTrainTestlist", "ucf101_splits", "annotations", "UCF_list"])
def test_every_known_layout_is_found(tmp_path: Path, rgb: str, flow: str, lists: str) -> None:
    write_clip(tmp_path, names()[0], rgb=rgb, flow=flow)
    write_lists(tmp_path, lists)
    folders = find_folders(tmp_path, "tvl1")
    assert folders.rgb == (tmp_path / rgb,)
    assert (folders.right, folders.down) == ((tmp_path / flow / "u",), (tmp_path / flow / "v",))
    assert folders.lists == tmp_path / lists


def test_flow_of_another_kind_is_told_apart(tmp_path: Path) -> None:
    write_clip(tmp_path, names()[0], flow="tvl1_flow")
    write_clip(tmp_path, names()[0], flow="dis_flow")
    write_lists(tmp_path)
    assert find_folders(tmp_path, "dis").right == (tmp_path / "dis_flow" / "u",)


def test_half_a_flow_is_none(tmp_path: Path) -> None:
    write_clip(tmp_path, names()[0])
    write_lists(tmp_path)
    (tmp_path / "tvl1_flow" / "v").rename(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match=r"optical flow in u/ and v/ of tvl1_flow or .*Found elsewhere, jpegs_256"):
        find_folders(tmp_path, "tvl1")


def test_missing_lists_are_explained(tmp_path: Path) -> None:
    write_clip(tmp_path, names()[0])
    with pytest.raises(RecipeError, match=r"should hold classInd\.txt.*: unpack the official archive"):
        find_folders(tmp_path, "tvl1")


@pytest.mark.parametrize("folder", ["UCF-101/YoYo", "YoYo", "videos/YoYo", "UCF101/UCF-101/YoYo"])
def test_videos_that_are_not_prepared_are_told_the_command(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "v_YoYo_g01_c01.avi").touch()
    with pytest.raises(RecipeError, match=rf"ucf101\.py prepare --data-root {tmp_path} --flow dis"):
        find_folders(tmp_path, "dis")


def test_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    assert read_classes(write(tmp_path / "c.txt", "\ufeff1 ApplyEyeMakeup\r\n2 YoYo\r\n\r\n")) == (
        "ApplyEyeMakeup",
        "YoYo",
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [("1 A\n3 B\n", r":2 should be `2 ClassName`\. Found '3 B'"), ("1 A\n2 A\n", ":2"), ("A\n", ":1"), ("", "none")],
)
def test_a_damaged_class_list_is_explained(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(RecipeError, match=found):
        read_classes(write(tmp_path / "classInd.txt", text))


def test_lists_with_and_without_numbers_are_read(tmp_path: Path) -> None:
    text = "\ufeffYoYo/v_YoYo_g08_c01.avi 3\r\nApplyEyeMakeup/v_ApplyEyeMakeup_g01_c02.avi\r\n\r\nv_YoYo_g09_c01\n"
    assert read_clips(write(tmp_path / "l.txt", text), CLASSES) == (
        Row("v_YoYo_g08_c01", "YoYo", ("08",)),
        Row("v_ApplyEyeMakeup_g01_c02", "ApplyEyeMakeup", ("01",)),
        Row("v_YoYo_g09_c01", "YoYo", ("09",)),
    )


@pytest.mark.parametrize("folder", ["HandstandPushups", "HandStandPushups"])
def test_the_class_with_two_spellings_is_one(tmp_path: Path, folder: str) -> None:
    path = write(tmp_path / "l.txt", f"{folder}/v_HandStandPushups_g01_c01.avi 2\n")
    assert read_clips(path, CLASSES) == (Row("v_HandStandPushups_g01_c01", "HandstandPushups", ("01",)),)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("YoYo/clip.avi 3\n", r":1 should be `Class/v_Class_g01_c01\.avi`"),
        ("Juggling/v_YoYo_g01_c01.avi\n", r":1 should have a class of classInd\.txt"),
        ("YoYo/v_YoYo_g01_c01.avi 2\n", r":1 should have the number 3 of YoYo.*Found 2"),
        ("YoYo/v_YoYo_g01_c01.avi\nYoYo/v_YoYo_g01_c01.avi\n", r"Found v_YoYo_g01_c01 again at .*:2"),
        ("\n", "Found none"),
    ],
)
def test_a_damaged_list_is_explained(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(RecipeError, match=found):
        read_clips(write(tmp_path / "list.txt", text), CLASSES)


def test_a_missing_list_is_explained(tmp_path: Path) -> None:
    write_lists(tmp_path, ".")
    with pytest.raises(RecipeError, match=r"trainlist02\.txt should be a readable list"):
        read_split(tmp_path, CLASSES, 2, 0, validation=True)


def test_no_group_is_in_two_parts(tmp_path: Path) -> None:
    write_lists(tmp_path, ".", fold=3, newline="\r\n")
    split, origin = read_split(tmp_path, CLASSES, 3, 0, validation=True)
    assert [len(part) for part in (split.train, split.val, split.test)] == [3 * 8 * 2, 3 * 1 * 2, 3 * 3 * 2]
    groups = [{(row.label, row.extra) for row in part} for part in (split.train, split.val, split.test)]
    assert len(set.union(*groups)) == sum(len(part) for part in groups) == 3 * 12
    assert "fold 3" in origin
    assert "groups of every class" in origin


def test_nothing_is_held_out_on_request(tmp_path: Path) -> None:
    write_lists(tmp_path, ".")
    split, origin = read_split(tmp_path, CLASSES, 1, 0, validation=False)
    assert [len(part) for part in (split.train, split.val, split.test)] == [3 * 9 * 2, 0, 3 * 3 * 2]
    assert "nothing held out" in origin


def test_lists_that_share_a_group_are_refused(tmp_path: Path) -> None:
    write_lists(tmp_path, ".")
    with (tmp_path / "testlist01.txt").open("a") as list_:
        list_.write("YoYo/v_YoYo_g08_c09.avi\n")
    with pytest.raises(RecipeError, match=r"lists of fold 1 .*no common group of clips\. Found 1, such as g08 of YoYo"):
        read_split(tmp_path, CLASSES, 1, 0, validation=True)


def test_held_out_groups_depend_on_the_seed_and_not_on_the_order() -> None:
    rows = [
        Row(f"{label}{group}{clip}", label, (str(group),)) for label in "ab" for group in range(18) for clip in "xy"
    ]
    kept, held = hold_out_groups(rows, 1 / 9, 0)
    assert [len({row.extra for row in held if row.label == label}) for label in "ab"] == [2, 2]
    assert len(kept) + len(held) == len(rows)
    assert hold_out_groups(reversed(rows), 1 / 9, 0) == (kept, held)
    assert len({hold_out_groups(rows, 1 / 9, seed)[1] for seed in range(5)}) > 1


def test_a_class_with_one_group_keeps_it_for_training() -> None:
    rows = [Row("a", "a", ("1",)), Row("b", "b", ("1",)), Row("c", "b", ("2",))]
    kept, held = hold_out_groups(rows, 1 / 9, 0)
    assert (len(kept), len(held), held[0].label) == (2, 1, "b")
