"""Where a dataset of wav files and frame folders lies on disk."""

import re
from pathlib import Path

import attrs

from recipe_common.data.samples.lists import Row
from recipe_common.errors import RecipeError


@attrs.frozen
class Layout:
    """What the folders of a dataset may be called.

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


def listing(folder: Path, shown: int = 8) -> str:
    """Say what is in a folder, for error messages."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "an empty folder") + more
