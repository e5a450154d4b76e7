"""Kinetics-Sounds on disk: classes, layouts in use, lists of clips, and the split into training and test."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from recipe_common.data.readers.non_files import file_error
from recipe_common.data.samples.audiovisual import existing, index_files
from recipe_common.data.samples.clips import ClipLayout
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.splits import Split
from recipe_common.data.samples.youtube import CLIP_NAME, add_row, clip_key, csv_rows, disjoint, lines_of
from recipe_common.errors import RecipeError

# In alphabetical order, as for the integers in the lists of Peng et al. (CVPR 2022).
CLASSES = (
    "blowing_nose",
    "blowing_out_candles",
    "bowling",
    "chopping_wood",
    "dribbling_basketball",
    "laughing",
    "mowing_lawn",
    "playing_accordion",
    "playing_bagpipes",
    "playing_bass_guitar",
    "playing_clarinet",
    "playing_drums",
    "playing_guitar",
    "playing_harmonica",
    "playing_keyboard",
    "playing_organ",
    "playing_piano",
    "playing_saxophone",
    "playing_trombone",
    "playing_trumpet",
    "playing_violin",
    "playing_xylophone",
    "ripping_paper",
    "shoveling_snow",
    "shuffling_cards",
    "singing",
    "stomping_grapes",
    "tap_dancing",
    "tapping_guitar",
    "tapping_pen",
    "tickling",
)
BASES = (
    *(".", "kinect_sound", "data", "data/KineticSound", "data/kinect_sound"),
    *("k400", "kinetics400", "data/kinetics400"),  # of the CVDF copy of Kinetics-400 and of its official archive
    *("kinsound", "KS_2023", "kinetics_sound"),
)
VIDEO_PARTS = {"train": "train", "val": "test", "test": "test", "videos_train": "train", "videos_val": "test"}
"""Part of the videos in each folder of Kinetics-400; its validation part is the test part here, or else `test`."""
REPLACEMENT = "replacement_for_corrupted_k400"
"""Folder of the CVDF copy with videos in place of some 1,400 that end before their index."""
CLASS_FOLDERS = {
    "train": ("audio/train/*", "visual/train_img/Image-01-FPS/*"),
    "test": ("audio/test/*", "visual/val_img/Image-01-FPS/*"),
}
LAYOUT = ClipLayout(
    audio=(
        "audio",
        "audio_spec",
        "train_spec",
        "test_spec",
        "audio/train",
        "audio/test",
        "audio/train/*",
        "audio/test/*",
        *("audio/*_fbank", "audio/*_spec"),  # of Zhang et al. (CVPR 2024)
        *("ks_audio/*", "train/audio/*", "test/audio/*"),  # of Wei et al. (CVPR 2024) and of Shen et al. (ACM MM 2023)
    ),
    frames=(
        *("visual", "hdf5", "visual/train_img/Image-01-FPS/*", "visual/val_img/Image-01-FPS/*"),
        *("visual/*_imgs/Image-01-FPS", "*-frames-1fps/*"),  # of Zhang et al. and of Huang et al. (CVPR 2025)
        *("ks_visual/*", "train/video/*", "test/video/*"),
    ),
    videos=(
        *("videos/*.mp4", "train/*.mp4", "train/*/*.mp4", "videos/*/*.mp4"),
        *(f"{part}/{clips}" for clips in ("*.mp4", "*/*.mp4") for part in VIDEO_PARTS if part != "train"),
        *(f"videos/{part}/*/*.mp4" for part in ("train", "val", "test")),
        f"replacement/{REPLACEMENT}/*.mp4",
    ),
    bases=BASES,
    prepare="python recipes/kinetics_sounds.py prepare --data-root {root}",
)
LISTS = {
    "train": ("my_train.txt", "ks_train_overlap.txt", "my_train_ks.txt", "ks_audio/train_1fps_path.txt"),
    "test": ("my_test.txt", "ks_test_overlap.txt", "my_test_ks.txt", "ks_audio/test_1fps_path.txt"),
}
ANNOTATIONS = {
    "train": ("annotations/train.csv", "train.csv"),
    "test": ("annotations/val.csv", "annotations/validate.csv", "val.csv", "validate.csv"),
}
ANNOTATION_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
DATABASES = ("KS_train_val.json", "KS.json")
LIST_HEADERS = frozenset({"name", "clip", "label", "class"})
MEDIA = (".wav", ".npy", ".pkl", ".pt", ".hdf5", "")


def read_split(root: Path, train_list: str | None, test_list: str | None) -> tuple[Split, str]:
    """Return the split and a line about its origin.

    The origin is the lists, a json file, folders that are named after classes, or the annotations of Kinetics-400.
    """
    train, test = list_files(root, {"train": train_list, "test": test_list})
    if train and test:
        rows = [read_clip_list(path, CLASSES) for path in (train, test)]
        return disjoint(Split(rows[0], (), rows[1])), f"{train}, {test}"
    if database := LAYOUT.find_file(root, DATABASES):
        return read_database(database, CLASSES), str(database)
    folders = {
        part: existing(root, [f"{base}/{it}" for base in BASES for it in places])
        for part, places in CLASS_FOLDERS.items()
    }
    parts = {part: rows_of_folders(folders[part], MEDIA, CLASSES) for part in folders}
    if not (train or test or all(parts.values())) and (annotated := read_annotations(root)):
        return annotated
    if train or test or not all(parts.values()):
        found = train or test or f"{len(parts['train'])} and {len(parts['test'])} clips in such folders"
        raise RecipeError(
            f"{root} should hold my_train.txt and my_test.txt, or {' or '.join(DATABASES)}, or folders such as "
            "audio/train/CLASS and audio/test/CLASS, or annotations/train.csv and val.csv of Kinetics-400",
            found=str(found),
            fix="add the missing files, or pass the lists with --train-list and --test-list",
        )
    names = {class_name(folder.name) for found in folders.values() for folder in found}
    others = ", ".join(sorted(names - set(CLASSES)))
    left_out = f"; left out, as they are none of the 31 classes: {others}" if others else ""
    return disjoint(Split(parts["train"], (), parts["test"])), f"class folders{left_out}"


def class_name(text: str) -> str:
    """Return a class name in the spelling of the Kinetics-Sounds lists: `Playing  piano` becomes `playing_piano`."""
    return "_".join(text.lower().replace("_", " ").split())


def read_clip_list(path: Path, classes: Sequence[str]) -> tuple[Row, ...]:
    """Read a list of clips whose columns are recognised by their content.

    A line holds, separated by commas or spaces, one clip name and one label, which is a class name in any column or
    else a class index in the last one: `ID_000012_000022,10,17`, `ID_45 3`, `ID_45.mp4 playing piano`. A header, a
    byte-order mark, CRLF and empty lines are accepted. A clip that is listed twice with one label counts once.

    Args:
        path: File of the list.
        classes: Class names in the order of their indices.

    Raises:
        RecipeError: With file and line number, for a line without clip or label, a label out of range, or a clip with
            two labels.
    """
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines_of(path), 1):
        cells = [cell.strip() for cell in (line.split(",") if "," in line else line.split())]
        if not any(cells) or (number == 1 and LIST_HEADERS & set(cells)):
            continue
        add_row(rows, _row(cells, classes, f"{path}:{number}"), f"{path}:{number}")
    if not rows:
        raise RecipeError(
            f"{path} should have lines such as `ID_000012_000022,10,17`", found="none", fix="restore the file"
        )
    return tuple(rows.values())


def read_database(path: Path, classes: Sequence[str]) -> Split:
    """Read a json file `{"labels": [...], "database": {clip: {"subset": ..., "label": ...}}}`.

    Subsets are `training`, `testing` and `validation`; without `testing`, `validation` is the test part, as Kinetics
    has no other.

    Raises:
        RecipeError: If the file has another form, or a label that is not among `classes`.
    """
    try:
        database = json.loads(path.read_text(encoding="utf-8-sig"))["database"]
        rows = {name: (str(entry["subset"]), class_name(entry["label"])) for name, entry in database.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise file_error(
            path,
            f'{path} should hold {{"database": {{clip: {{"subset": ..., "label": ...}}}}}}',
            found=f"{type(error).__name__}: {error}",
            fix="restore the file",
        ) from error
    known = {"training", "validation", "testing"}
    for name, (subset, label) in rows.items():
        if subset not in known or label not in classes:
            raise RecipeError(
                f"Entries of {path} should have a subset of {', '.join(sorted(known))}, one of {len(classes)} labels",
                found=f"{subset!r} and {label!r} for {name}",
                fix="correct the entry",
            )
    part = {name: tuple(Row(clip, label) for clip, (subset, label) in rows.items() if subset == name) for name in known}
    if not part["testing"]:
        part |= {"testing": part["validation"], "validation": ()}
    return disjoint(Split(part["training"], part["validation"], part["testing"]))


def read_annotations(root: Path) -> tuple[Split, str] | None:
    """Read the annotations of Kinetics-400: csv files with the columns `ANNOTATION_COLUMNS`, and others.

    Returns:
        The split, clips of our classes whose test part is the validation part of Kinetics, and a line about its origin;
        None if a file is absent.

    Raises:
        RecipeError: With file and line number, for a file or line of another form.
    """
    paths = [LAYOUT.find_file(root, names) for names in ANNOTATIONS.values()]
    train, test = paths
    if not (train and test):
        return None
    (train_rows, train_count), (test_rows, test_count) = (_annotated(path) for path in (train, test))
    counts = (
        f"{len(train_rows):,} of {train_count:,} and {len(test_rows):,} of {test_count:,} rows are of the 31 classes"
    )
    return disjoint(Split(train_rows, (), test_rows)), f"{train}, {test}: {counts}"


def _annotated(path: Path) -> tuple[tuple[Row, ...], int]:
    """Return the rows of our classes, and the number of all."""
    rows: dict[str, Row] = {}
    places: list[int] = []
    count = -1
    for count, (number, cells) in enumerate(csv_rows(path)):
        if count == 0:
            if not set(ANNOTATION_COLUMNS) <= set(cells):
                raise RecipeError(
                    f"{path}:{number} should have the columns {', '.join(ANNOTATION_COLUMNS)}",
                    found=repr(",".join(cells)),
                    fix="take the file of the official archive of Kinetics-400",
                )
            places = [cells.index(column) for column in ANNOTATION_COLUMNS]
            continue
        label, name, start, end = (cells[place] if place < len(cells) else "" for place in places)
        if not (name and start.isdigit() and end.isdigit()):
            raise RecipeError(
                f"{path}:{number} should have a video id and two times in seconds",
                found=repr(",".join(cells)),
                fix="restore the file",
            )
        if class_name(label) in CLASSES:
            clip = Row(f"{name}_{int(start):06d}_{int(end):06d}", class_name(label))
            add_row(rows, clip, f"{path}:{number}")
    return tuple(rows.values()), max(count, 0)


def rows_of_folders(folders: Iterable[Path], endings: Sequence[str], classes: Sequence[str]) -> tuple[Row, ...]:
    """List the clips in folders that are named after classes, each once, sorted by name; other folders are ignored.

    Raises:
        RecipeError: If a clip is in the folders of two classes.
    """
    rows: dict[str, Row] = {}
    for folder in folders:
        label = class_name(folder.name)
        if label in classes:
            for path in index_files([folder], endings, clip_key).values():
                add_row(rows, Row(path.name if path.is_dir() else path.stem, label), str(path))
    return tuple(rows[key] for key in sorted(rows))


def _row(cells: Sequence[str], classes: Sequence[str], where: str) -> Row:
    names = [cell for cell in cells if CLIP_NAME.fullmatch(cell)]
    if len(names) != 1 or len(cells) < 2:
        raise RecipeError(
            f"{where} should have one clip name such as ID_000012_000022, and a label",
            found=repr(",".join(cells)),
            fix="correct the line",
        )
    others = " ".join(cell for cell in cells if cell != names[0])  # a class of several words, if spaces separate cells
    named = [class_name(cell) for cell in (*cells, others) if class_name(cell) in classes]
    if named:
        return Row(names[0].removesuffix(".mp4"), named[0])
    if not cells[-1].isdigit() or int(cells[-1]) >= len(classes):
        raise RecipeError(
            f"{where} should have a label from 0 to {len(classes) - 1}, or a class name",
            found=repr(cells[-1]),
            fix="correct the line, or pass the list of this dataset",
        )
    return Row(names[0].removesuffix(".mp4"), classes[int(cells[-1])])


def list_files(root: Path, given: Mapping[str, str | None]) -> list[Path | None]:
    """Return the training and the test list: those given by flags, else those under the root, else None."""
    return [Path(path) if (path := given[part]) else LAYOUT.find_file(root, names) for part, names in LISTS.items()]
