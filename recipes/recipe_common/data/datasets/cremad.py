"""CREMA-D on disk: its classes, the layouts in use, and the lists of the published split."""

import re
from collections.abc import Sequence
from pathlib import Path

import attrs

from recipe_common.data.datasets.known_faults import KNOWN_FAULTS
from recipe_common.data.samples.lists import Row, read_list
from recipe_common.data.samples.splits import VAL_SHARE, Split, check_disjoint, hold_out
from recipe_common.errors import RecipeError
from recipe_common.files import listing

CLASS_ORDERS = {
    # Peng et al. (CVPR 2022), Li et al. (ICCV 2023), Wei et al. (ICCV 2025), PMR, BalanceBenchmark.
    "official": ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"),
    # Wei et al. (ECCV 2024), MMPareto.
    "alphabetical": ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
}


def clip_name(name: str) -> str:
    """Return the name of a clip in today's copy; that of one wav file was another before October 2022."""
    return KNOWN_FAULTS["cremad"].renamed.get(name, name)


@attrs.frozen
class Layout:
    """Possible names for the folders of the dataset.

    Args:
        audio: Folders of NAME.wav, of which the first one that exists is read.
        frames: Folder of NAME/ with numbered jpg files.
        videos: Folder of the videos from which `prepare` makes sound and frames.
        lists: Folders that may hold the split lists.
        name: Pattern of a clip name; its only group is the label.
        prepare: The command that makes the frames; `{root}` stands for the data root.
    """

    audio: tuple[str, ...]
    frames: str
    videos: str
    lists: tuple[str, ...]
    name: re.Pattern[str]
    prepare: str

    def find(self, root: Path) -> "Folders":
        """Find wav files and frames under `root`.

        Raises:
            RecipeError: If a folder is absent; the fix is `prepare` where there are videos.
        """
        audio = self.audio_folder(root)
        frames = root / self.frames
        if audio.is_dir() and frames.is_dir():
            lists = next((root / name for name in self.lists if (root / name / "train.csv").is_file()), None)
            return Folders(audio, frames, lists)
        if (root / self.videos).is_dir():
            raise RecipeError(
                f"{audio} should hold wav files, and {frames} frames",
                found=f"videos that are not prepared yet, in {root / self.videos}",
                fix=f"run `{self.prepare.format(root=root)}`",
            )
        raise RecipeError(
            f"{root} should hold wav files in {' or '.join(self.audio)}, and frames in {self.frames}/NAME/*.jpg or "
            f"videos in {self.videos}",
            found=listing(root),
            fix="point --data-root to the folder that holds them, or leave it out to train on a small synthetic set",
        )

    def audio_folder(self, root: Path) -> Path:
        """Return the folder of the wav files; the first of the possible ones if none exists."""
        existing = [root / name for name in self.audio if (root / name).is_dir()]
        return existing[0] if existing else root / self.audio[0]

    def rows(self, folders: "Folders", classes: tuple[str, ...]) -> tuple[Row, ...]:
        """List every clip that has a wav file or a frame folder; the class is a part of its name."""
        found = {path.stem for path in folders.audio.glob("*.wav")} | {path.name for path in folders.frames.iterdir()}
        names = set(map(clip_name, found))
        matches = [match for name in sorted(names) if (match := self.name.fullmatch(name)) and match[1] in classes]
        if not matches:
            raise RecipeError(
                f"Names in {folders.audio} and {folders.frames} should match {self.name.pattern}",
                found=f"{listing(folders.audio)} and {listing(folders.frames)}",
                fix="point --data-root to the data",
            )
        return tuple(Row(match[0], match[1]) for match in matches)


@attrs.frozen
class Folders:
    """Folders of the wav files, of the frame folders, and of the split lists if there are any."""

    audio: Path
    frames: Path
    lists: Path | None


def layout_of(fps: int) -> Layout:
    """Return the folder names of the official download and of the papers' code, for frames at `fps` per second."""
    return Layout(
        audio=("AudioWAV", "Audio", "audio"),
        frames=f"Image-{fps:02d}-FPS",
        videos="VideoFlash",
        lists=(".", "CREMAD", "data/CREMAD"),
        name=re.compile(r"\d{4}_[A-Z]{3}_([A-Z]{3})_[A-Z]{1,2}"),
        prepare=f"python recipes/cremad.py prepare --data-root {{root}} --fps {fps}",
    )


def listed_split(folder: Path, classes: Sequence[str], seed: int, *, validation: bool = True) -> tuple[Split, str]:
    """Read `train.csv` and `test.csv`, and `val.csv` and `my_train.csv` (the rest of train.csv) where they exist.

    Without `val.csv`, one ninth of every class of train.csv is held out: for CREMA-D 744 clips, as many as in test.csv.
    Without `validation`, all of train.csv is for training.

    Returns:
        The split, and a line about its origin.
    """
    train, test = (read_list(folder / name, classes) for name in ("train.csv", "test.csv"))
    if not validation:
        split, origin = Split(train, (), test), f"lists in {folder}; nothing held out for validation"
    elif (folder / "val.csv").is_file():
        val = read_list(folder / "val.csv", classes)
        listed = folder / "my_train.csv"
        held = {row.name for row in val}
        rest = read_list(listed, classes) if listed.is_file() else tuple(row for row in train if row.name not in held)
        split, origin = Split(rest, val, test), f"lists in {folder}, val.csv included"
    else:
        split = Split(*hold_out(train, VAL_SHARE, seed), test)
        origin = f"lists in {folder}; for validation 1/9 of every class of train.csv, seed {seed}"
    check_disjoint(split)
    return split, origin
