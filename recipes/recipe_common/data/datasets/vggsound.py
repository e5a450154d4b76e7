"""VGGSound on disk: the layouts in use, and the lists of its clips."""

from pathlib import Path

from recipe_common.data.prepare.video import VideoJob
from recipe_common.data.samples.clips import ClipLayout, flat_job
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.splits import Split
from recipe_common.data.samples.youtube import CLIP_NAME, add_row, csv_rows, disjoint
from recipe_common.errors import RecipeError

PARTS = ("train", "test")
PLACES = ClipLayout(
    audio=("audio", *(f"{base}{part}-audios/{part}-set" for base in ("", "audio/") for part in PARTS)),
    frames=(
        "visual",
        "video",
        *(f"{part}-videos/{part}-set-img/Image-01-FPS" for part in PARTS),
        *(f"video/{part}-set-img/Image-01-FPS" for part in PARTS),
    ),
    videos=(*(f"{part}-videos/{part}-set/*.mp4" for part in PARTS), "videos/*.mp4"),
    bases=(".", "vggsound", "VGGSound", "data/VGGSound"),
    prepare="python recipes/vggsound.py prepare --data-root {root}",
)
COLUMNS = "video id, start second, label, train or test"


def read_split(root: Path) -> tuple[Split, str]:
    """Return the split, without validation rows, and where it comes from."""
    if path := PLACES.find_file(root, ["vggsound.csv"]):
        return read_vggsound(path), str(path)
    lists = [PLACES.find_file(root, [f"{part}.csv"]) for part in PARTS]
    train, test = lists
    if train and test:
        return disjoint(Split(read_named_list(train), (), read_named_list(test))), f"{train}, {test}"
    raise RecipeError(
        f"Expected vggsound.csv, or train.csv and test.csv, in {root}. Found {train or test or 'none of them'}. "
        "Fix: download vggsound.csv, which lists all clips, from the VGGSound site."
    )


def read_vggsound(path: Path) -> Split:
    """Read `vggsound.csv`: video id, start second, label (quoted if it holds a comma), `train` or `test`; no header.

    Returns:
        The split, without validation rows.

    Raises:
        RecipeError: With file and line number, for a line that is not so, or a clip with two labels.
    """
    parts: dict[str, dict[str, Row]] = {"train": {}, "test": {}}
    for number, cells in csv_rows(path):
        where = f"{path}:{number}"
        if len(cells) != 4 or cells[3] not in parts or not cells[1].isdigit() or not all(cells):
            raise RecipeError(f"Expected {COLUMNS} at {where}. Found {','.join(cells)!r}. Fix: correct it.")
        add_row(parts[cells[3]], Row(f"{cells[0]}_{cells[1]}", cells[2]), where)
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
    for number, cells in csv_rows(path):
        if len(cells) != 2 or not CLIP_NAME.fullmatch(cells[0]) or not cells[1]:
            raise RecipeError(
                f"Expected `ID_000030.mp4,label` at {path}:{number}. Found {','.join(cells)!r}. Fix: correct the line."
            )
        add_row(rows, Row(cells[0].removesuffix(".mp4"), cells[1]), f"{path}:{number}")
    if not rows:
        raise RecipeError(f"Expected lines such as `ID_000030.mp4,label`. Found none in {path}. Fix: restore it.")
    return tuple(rows.values())


def video_job(root: Path, video: Path) -> VideoJob:
    """Put frames and sound where the OGM-GE code has them, or those of videos/ into visual/ and audio/."""
    part = video.parent.name.removesuffix("-set")
    if part not in PARTS:
        return flat_job(root, video)
    frames = root / f"{part}-videos/{part}-set-img/Image-01-FPS" / video.name
    return VideoJob(video, frames, root / f"{part}-audios/{part}-set/{video.stem}.wav")
