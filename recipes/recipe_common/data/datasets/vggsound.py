"""VGGSound on disk: layouts in use, lists of clips, and the split into training and test."""

from pathlib import Path

from recipe_common.data.prepare.video import VideoJob
from recipe_common.data.samples.clips import ClipLayout, flat_job
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.splits import Split
from recipe_common.data.samples.youtube import CLIP_NAME, add_row, csv_rows, disjoint
from recipe_common.errors import RecipeError
from recipe_common.files import listing

PARTS = ("train", "test")
LAYOUT = ClipLayout(
    audio=(
        *("audio", *(f"{base}{part}-audios/{part}-set" for base in ("", "audio/") for part in PARTS)),
        *(f"audio/{part}{clips}" for clips in ("", "/*") for part in PARTS),  # of Shen et al. (ACM MM 2023), by class
    ),
    frames=(
        "visual",
        "video",
        *(f"{part}-videos/{part}-set-img/Image-01-FPS" for part in PARTS),
        *(f"video/{part}-set-img/Image-01-FPS" for part in PARTS),
        *(f"frames/{part}/*" for part in PARTS),
        *(f"video/frames/{part}/Image-01-FPS" for part in PARTS),
    ),
    videos=(
        *("videos/*.mp4", "video/*.mp4"),
        *(f"{part}-videos/{part}-set/*.mp4" for part in PARTS),
        *(f"{part}/*/*.mp4" for part in ("train", "val", "test")),  # of Asano et al. (NeurIPS 2020), by class
        *(f"video/{part}/*/*.avi" for part in PARTS),
    ),
    bases=(
        *(".", "vggsound", "VGGSound", "data/VGGSound", "data/vggsound", "VGGSound_final"),
        "scratch/shared/beegfs/hchen/train_data/VGGSound_final",  # in the archive of the authors
    ),
    prepare="python recipes/vggsound.py prepare --data-root {root}",
)
IRREGULAR = 0.005
"""Share of rows that may list a clip again with another label or part: the file has 291 rows more than its clips."""
COLUMNS = "video id, start second, label, train or test"


def read_split(root: Path) -> tuple[Split, str]:
    """Return the split, without validation rows, and a line about its origin.

    Raises:
        RecipeError: If the lists are absent or malformed.
    """
    if path := LAYOUT.find_file(root, ["vggsound.csv"]):
        return read_vggsound(path)
    lists = [LAYOUT.find_file(root, [f"{part}.csv"]) for part in PARTS]
    train, test = lists
    if train and test:
        return disjoint(Split(read_named_list(train), (), read_named_list(test))), f"{train}, {test}"
    raise RecipeError(
        f"{root} should hold vggsound.csv, or train.csv and test.csv",
        found=listing(root),
        fix="download vggsound.csv, which lists all clips, from the VGGSound site, or point --data-root to its folder",
    )


def read_vggsound(path: Path) -> tuple[Split, str]:
    """Read `vggsound.csv`: video id, start second, label (quoted if it holds a comma), `train` or `test`.

    The published file has no header; one is skipped. Of a clip with two labels the first one counts, and a clip of both
    parts is left out of training, up to `IRREGULAR` of all rows.

    Returns:
        The split, without validation rows, and a line about its origin.

    Raises:
        RecipeError: With file and line number, for a line of another form, or for more clips with two labels or parts.
    """
    parts: dict[str, dict[str, Row]] = {"train": {}, "test": {}}
    repeated: list[RecipeError] = []
    total = 0
    for number, cells in csv_rows(path):
        where = f"{path}:{number}"
        if number == 1 and len(cells) == 4 and not cells[1].isdigit() and cells[3] not in parts:
            continue
        if len(cells) != 4 or cells[3] not in parts or not cells[1].isdigit() or not all(cells):
            raise RecipeError(f"{where} should be {COLUMNS}", found=repr(",".join(cells)), fix="correct the line")
        total += 1
        try:
            add_row(parts[cells[3]], Row(f"{cells[0]}_{cells[1]}", cells[2]), where)
        except RecipeError as error:
            repeated.append(error)
    for name, rows in parts.items():
        if not rows:
            raise RecipeError(
                f"{path} should have {name} rows", found="none", fix="restore the file, which is cut short"
            )
    train, test = parts["train"], parts["test"]
    shared = train.keys() & test.keys()
    if len(repeated) + len(shared) > IRREGULAR * total:
        if repeated:
            raise repeated[0]
        return disjoint(Split(tuple(train.values()), (), tuple(test.values()))), str(path)
    notes = [f"{len(repeated)} rows repeat a clip with another label, the first counts"] * bool(repeated)
    notes += [f"{len(shared)} clips of both parts left out of training"] * bool(shared)
    kept = tuple(row for key, row in train.items() if key not in shared)
    return Split(kept, (), tuple(test.values())), "; ".join([str(path), *notes])


def read_named_list(path: Path) -> tuple[Row, ...]:
    """Read a csv file of clip name and class name, such as `ID_000030.mp4,"playing theremin, solo"`; no header.

    Raises:
        RecipeError: With file and line number, for a line of another form, or a clip with two labels.
    """
    rows: dict[str, Row] = {}
    for number, cells in csv_rows(path):
        if len(cells) != 2 or not CLIP_NAME.fullmatch(cells[0]) or not cells[1]:
            raise RecipeError(
                f"{path}:{number} should be `ID_000030.mp4,label`",
                found=repr(",".join(cells)),
                fix="correct the line, or point --data-root to the lists of VGGSound",
            )
        add_row(rows, Row(cells[0].removesuffix(".mp4"), cells[1]), f"{path}:{number}")
    if not rows:
        raise RecipeError(
            f"{path} should have lines such as `ID_000030.mp4,label`", found="none", fix="restore the file"
        )
    return tuple(rows.values())


def video_job(root: Path, video: Path) -> VideoJob:
    """Return a job for frames and sound in the layout of Peng et al. (CVPR 2022), or in a flat one for other videos."""
    part = video.parent.name.removesuffix("-set")
    if part not in PARTS:
        return flat_job(root, video)
    frames = root / f"{part}-videos/{part}-set-img/Image-01-FPS" / video.name
    return VideoJob(video, frames, root / f"{part}-audios/{part}-set/{video.stem}.wav")
