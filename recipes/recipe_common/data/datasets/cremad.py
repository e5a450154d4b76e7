"""CREMA-D on disk: its classes, the layouts in use, and the lists of the published split."""

import re
from collections.abc import Sequence
from pathlib import Path

import attrs

from recipe_common.data.samples.lists import Row, read_list
from recipe_common.data.samples.splits import VAL_SHARE, Split, check_disjoint, hold_out
from recipe_common.errors import RecipeError
from recipe_common.files import listing

CLASS_ORDERS = {
    "official": ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"),  # OGM-GE, AGM, DGL, PMR, BalanceBenchmark
    "alphabetical": ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),  # Diagnosing & Re-learning, MMPareto
}


@attrs.frozen
class Layout:
    """Names that the folders of the dataset may have.

    Args:
        audio: Folders of NAME.wav, any one of which is enough.
        frames: Folder of NAME/ with numbered jpg files.
        videos: Folder of the videos that `prepare` makes both from.
        lists: Folders in which split lists are looked for.
        name: Matches a clip's name; its only group is the label.
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
            RecipeError: Saying what is expected and found, and whether `prepare` is the fix.
        """
        audio = self.audio_folder(root)
        frames = root / self.frames
        if audio.is_dir() and frames.is_dir():
            lists = next((root / name for name in self.lists if (root / name / "train.csv").is_file()), None)
            return Folders(audio, frames, lists)
        if (root / self.videos).is_dir():
            raise RecipeError(
                f"Expected wav files in {audio} and frames in {frames}. Found videos that are not prepared yet, in "
                f"{root / self.videos}. Fix: {self.prepare.format(root=root)}"
            )
        raise RecipeError(
            f"Expected in {root}: wav files in {' or '.join(self.audio)}, and frames in {self.frames}/NAME/*.jpg or "
            f"videos in {self.videos}. Found {listing(root)}. Fix: point --data-root to the folder that holds them, "
            "or leave it out to train on a small synthetic set."
        )

    def audio_folder(self, root: Path) -> Path:
        """Return the folder of the wav files; the first of the possible ones if none is there."""
        existing = [root / name for name in self.audio if (root / name).is_dir()]
        return existing[0] if existing else root / self.audio[0]

    def rows(self, folders: "Folders", classes: tuple[str, ...]) -> tuple[Row, ...]:
        """List every clip that has a wav file or a frame folder; its name tells the class."""
        names = {path.stem for path in folders.audio.glob("*.wav")} | {path.name for path in folders.frames.iterdir()}
        matches = [match for name in sorted(names) if (match := self.name.fullmatch(name)) and match[1] in classes]
        if not matches:
            raise RecipeError(
                f"Expected names that match {self.name.pattern} in {folders.audio} and {folders.frames}. "
                f"Found {listing(folders.audio)} and {listing(folders.frames)}. Fix: point --data-root to the data."
            )
        return tuple(Row(match[0], match[1]) for match in matches)


@attrs.frozen
class Folders:
    """Where the data are: wav files, frame folders, and split lists if there are any."""

    audio: Path
    frames: Path
    lists: Path | None


def layout_of(fps: int) -> Layout:
    """Return the folder names of the official download and of the OGM-GE and AGM code, for frames at `fps`."""
    return Layout(
        audio=("AudioWAV", "Audio", "audio"),
        frames=f"Image-{fps:02d}-FPS",
        videos="VideoFlash",
        lists=(".", "CREMAD", "data/CREMAD"),
        name=re.compile(r"\d{4}_[A-Z]{3}_([A-Z]{3})_[A-Z]{1,2}"),
        prepare=f"python recipes/cremad.py prepare --data-root {{root}} --fps {fps}",
    )


def listed_split(folder: Path, classes: Sequence[str], seed: int, *, validation: bool = True) -> tuple[Split, str]:
    """Read `train.csv` and `test.csv`, and `val.csv` and `my_train.csv` (what is left of train.csv) where they exist.

    Without `val.csv`, one ninth of every class of train.csv is held out: for CREMA-D 744 clips, as many as in test.csv.
    Without `validation`, all of train.csv is for training.

    Returns:
        The split, and a line that says where it comes from.
    """
    train, test = (read_list(folder / name, classes) for name in ("train.csv", "test.csv"))
    if not validation:
        split, origin = Split(train, (), test), f"lists in {folder}; nothing held out for validation"
    elif (folder / "val.csv").is_file():
        val = read_list(folder / "val.csv", classes)
        mine = folder / "my_train.csv"
        held = {row.name for row in val}
        rest = read_list(mine, classes) if mine.is_file() else tuple(row for row in train if row.name not in held)
        split, origin = Split(rest, val, test), f"lists in {folder}, val.csv included"
    else:
        split = Split(*hold_out(train, VAL_SHARE, seed), test)
        origin = f"lists in {folder}; for validation 1/9 of every class of train.csv, seed {seed}"
    check_disjoint(split)
    return split, origin
