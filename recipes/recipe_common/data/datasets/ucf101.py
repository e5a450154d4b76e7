"""UCF-101 on disk: folders of frames and optical flow, class list, and the lists of the official splits."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from recipe_common.data.readers.non_files import check_file
from recipe_common.data.readers.two_stream import FLOW_NAME
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.seeding import permutation
from recipe_common.data.samples.splits import VAL_SHARE, Split, check_disjoint
from recipe_common.errors import RecipeError
from recipe_common.files import listing

CLASS_LIST = "classInd.txt"
LIST_FOLDERS = (
    *(".", "ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "ucf101_splits"),
    *("annotations", "UCF_list"),
)
RGB_FOLDERS = ("jpegs_256", "ucf101_jpegs_256/jpegs_256", "ucf101_jpegs_256", "jpegs", "rgb", "visual")
FLOW_FOLDERS = ("{flow}_flow", "ucf101_{flow}_flow/{flow}_flow", "ucf101_{flow}_flow", "flow")
RAW_FRAMES = "rawframes"
"""Folder of MMAction2: `rawframes/CLASS/NAME/` holds `img_00001.jpg`, `flow_x_00001.jpg` and `flow_y_00001.jpg`."""
VIDEOS = ("UCF-101/*/*.avi", "*/*.avi", "videos/*/*.avi", "UCF101/*/*.avi", "UCF101/UCF-101/*/*.avi")
CLIP = re.compile(
    r"(?:(?P<folder>[^/\s]+)/)?(?P<name>v_(?P<label>\w+?)_g(?P<group>\d+)_c\d+)(?:\.avi)?(?:\s+(?P<index>\d+))?"
)


@attrs.frozen
class Folders:
    """Folders of the dataset.

    Attributes:
        rgb: Folders of the clips' frames: one, or one for each class.
        right: Folders of the optical flow to the right.
        down: Folders of the optical flow downwards; those of `right` in the layout of `RAW_FRAMES`.
        lists: Folder of the lists.
    """

    rgb: tuple[Path, ...]
    right: tuple[Path, ...]
    down: tuple[Path, ...]
    lists: Path


def find_folders(root: Path, flow: str) -> Folders:
    """Find frames, flow and lists under `root`.

    The layouts are those of `RGB_FOLDERS`, `FLOW_FOLDERS` and `LIST_FOLDERS`, and that of `RAW_FRAMES`.

    Args:
        root: Folder of the dataset.
        flow: Method that computed the flow, such as `tvl1`, a part of the names of its folders.

    Raises:
        RecipeError: If a folder is absent; the fix is `prepare` where there are videos.
    """
    flows = tuple(name.format(flow=flow) for name in FLOW_FOLDERS)
    raw = _clip_folders(root / RAW_FRAMES)
    rgb = next(filter(None, (_clip_folders(root / name) for name in RGB_FOLDERS)), raw)
    motions = ([_clip_folders(root / name / axis) for axis in "uv"] for name in flows)
    right, down = next(filter(all, motions), (raw, raw) if any(map(_holds_flow, raw)) else ((), ()))
    if not rgb or not right:
        raise _no_media(root, flow, flows, bool(rgb), bool(right))
    lists = next((root / name for name in LIST_FOLDERS if (root / name / CLASS_LIST).is_file()), None)
    if lists is None:
        raise RecipeError(
            f"{root} or its {' or '.join(LIST_FOLDERS[1:])} should hold {CLASS_LIST}, trainlist01.txt and so on",
            found=listing(root),
            fix="unpack the official archive of train/test splits there",
        )
    return Folders(rgb, right, down, lists)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read `classInd.txt`: lines of a number, from 1, and a class name.

    Raises:
        RecipeError: If a line has another form, or a number or name is missing or repeated.
    """
    classes: list[str] = []
    for number, line in _lines(path):
        cells = line.split()
        if len(cells) != 2 or cells[0] != str(len(classes) + 1) or cells[1] in classes:
            raise RecipeError(
                f"{path}:{number} should be `{len(classes) + 1} ClassName`", found=repr(line), fix="restore the file"
            )
        classes.append(cells[1])
    if not classes:
        raise RecipeError(f"{path} should have lines such as `1 ApplyEyeMakeup`", found="none", fix="restore the file")
    return tuple(classes)


def read_clips(path: Path, classes: Sequence[str]) -> tuple[Row, ...]:
    """Read `trainlist01.txt` and the like: lines of `Class/v_Class_g08_c01.avi`, in training lists with a class number.

    The class is the name of the folder, in upper or lower case (`HandStandPushups`); a byte-order mark and CRLF are
    accepted.

    Returns:
        Rows with the group, such as `08`, as `extra`.

    Raises:
        RecipeError: With file and line number, for another form, an unknown class, the class number of another class,
            or a clip that is listed twice.
    """
    by_lower = {name.lower(): name for name in classes}
    rows: dict[str, Row] = {}
    for number, line in _lines(path):
        where = f"{path}:{number}"
        match = CLIP.fullmatch(line)
        if not match:
            raise RecipeError(
                f"{where} should be `Class/v_Class_g01_c01.avi`", found=repr(line), fix="correct the line"
            )
        label = by_lower.get((match["folder"] or match["label"]).lower())
        if label is None:
            raise RecipeError(f"{where} should have a class of {CLASS_LIST}", found=repr(line), fix="correct the line")
        if match["index"] and int(match["index"]) != classes.index(label) + 1:
            raise RecipeError(
                f"{where} should have the number {classes.index(label) + 1} of {label}, as in {CLASS_LIST}",
                found=match["index"],
                fix="use lists of one origin",
            )
        if match["name"] in rows:
            raise RecipeError(
                f"{path} should list every clip once", found=f"{match['name']} again at {where}", fix="remove the line"
            )
        rows[match["name"]] = Row(match["name"], label, (match["group"],))
    if not rows:
        raise RecipeError(
            f"{path} should have lines of `Class/v_Class_g01_c01.avi`", found="none", fix="restore the file"
        )
    return tuple(rows.values())


def read_split(lists: Path, classes: Sequence[str], fold: int, seed: int, *, validation: bool) -> tuple[Split, str]:
    """Read one of the official splits, and hold out one ninth of the groups of every class for validation.

    Clips of one group show the same people in the same place, often seconds apart; the official lists never put a
    group into both training and test.

    Args:
        lists: Folder of the lists.
        classes: Class names in the order of their indices.
        fold: Number of the split: 1, 2 or 3.
        seed: Seed of the choice of groups.
        validation: Whether groups are held out.

    Returns:
        The split, and a line about its origin.

    Raises:
        RecipeError: If a list is missing or malformed, or a group of a class is in both lists.
    """
    train, test = (read_clips(lists / f"{part}list{fold:02d}.txt", classes) for part in ("train", "test"))
    check_disjoint(
        {"train": train, "test": test},
        lambda row: f"g{row.extra[0]} of {row.label}",
        of=f"lists of fold {fold} in {lists}",
        unit="group of clips",
        fix="restore the official lists",
    )
    if not validation:
        return Split(train, (), test), f"fold {fold} of {lists}; nothing held out for validation"
    kept, held = hold_out_groups(train, VAL_SHARE, seed)
    return Split(
        kept, held, test
    ), f"fold {fold} of {lists}; for validation 1/9 of the groups of every class, seed {seed}"


def hold_out_groups(rows: Iterable[Row], share: float, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Hold out whole groups at random: `share` of the groups in every class, at least one where there are two.

    Args:
        rows: Clips whose first `extra` is their group, a number within the class.
        share: Share of the groups, 0 to 1.
        seed: Seed of the choice, which depends on the groups of each class and on nothing else.

    Returns:
        The rows that stay, and the rows held out, both sorted by name.
    """
    groups: Mapping[str, set[str]] = defaultdict(set)
    rows = sorted(rows, key=lambda row: row.name)
    for row in rows:
        groups[row.label].add(row.extra[0])
    held: set[tuple[str, str]] = set()
    for index, label in enumerate(sorted(groups)):
        names = sorted(groups[label])
        count = min(max(1, round(len(names) * share)), len(names) - 1)
        held |= {(label, names[place]) for place in permutation(len(names), seed, index)[:count]}
    is_held = [(row.label, row.extra[0]) in held for row in rows]
    kept_rows, held_rows = (
        tuple(row for row, flag in zip(rows, is_held, strict=True) if flag is wanted) for wanted in (False, True)
    )
    return kept_rows, held_rows


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers."""
    check_file(path, f"{path} should be a readable list", may_be_empty=True)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} should be a readable list",
            found=str(error),
            fix="unpack the official archive of train/test splits",
        ) from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _clip_folders(folder: Path) -> tuple[Path, ...]:
    """Return a folder if it holds clips, else its folders that do, one for each class."""
    if _holds_clips(folder):
        return (folder,)
    return tuple(path for path in sorted(folder.iterdir()) if _holds_clips(path)) if folder.is_dir() else ()


def _holds_clips(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.startswith("v_") and entry.is_dir() for entry in entries)


def _holds_flow(folder: Path) -> bool:
    """Return whether the first clip in a folder has flow among its frames."""
    clip = next(path for path in sorted(folder.iterdir()) if path.name.startswith("v_") and path.is_dir())
    return any(FLOW_NAME.fullmatch(path.name) for path in clip.iterdir())


def _no_media(root: Path, flow: str, flows: Sequence[str], rgb: bool, motion: bool) -> RecipeError:
    absent = [] if rgb else [f"frames in {' or '.join(RGB_FOLDERS)}, as v_.../frame000001.jpg"]
    absent += [] if motion else [f"optical flow in u/ and v/ of {' or '.join(flows)}, as v_.../frame000001.jpg"]
    should = f"{root} should hold {'; '.join(absent)}"
    if any(next(root.glob(pattern), None) for pattern in VIDEOS):
        fix = f"run `python recipes/ucf101.py prepare --data-root {root} --flow {flow}`"
        return RecipeError(should, found="videos that are not prepared yet", fix=fix)
    if rgb:
        fix = "unpack the archive of the flow too, or put the videos there as UCF-101/CLASS/NAME.avi and run `prepare`"
        return RecipeError(should, found=listing(root), fix=fix)
    return RecipeError(
        should,
        found=listing(root),
        fix="point --data-root to the folder that holds them, or leave it out to train on a small synthetic set",
    )
