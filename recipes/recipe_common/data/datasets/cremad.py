"""CREMA-D on disk: its classes, the layouts in use, and the lists of the published split."""

import re
from collections.abc import Sequence
from pathlib import Path

import attrs

from recipe_common.data.datasets.known_faults import KNOWN_FAULTS
from recipe_common.data.prepare.video import find_videos
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.samples.audiovisual import existing, listed
from recipe_common.data.samples.lists import Row, read_list
from recipe_common.data.samples.splits import VAL_SHARE, Split, check_disjoint, hold_out, row_name
from recipe_common.data.samples.youtube import lines_of
from recipe_common.errors import RecipeError
from recipe_common.files import listing

CLASS_ORDERS = {
    # Peng et al. (CVPR 2022), Li et al. (ICCV 2023), Wei et al. (ICCV 2025), Fan et al. (CVPR 2023), BalanceBenchmark.
    "official": ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"),
    # Wei et al. (ECCV 2024), Wei and Hu (ICML 2024).
    "alphabetical": ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
}
VIDEO_FOLDER = "VideoFlash"
SOUND_ENDINGS = (".wav", *StoredSpectrogram.endings)
LISTS = (("train.csv", "test.csv"), ("my_train_cre.txt", "my_test_cre.txt"))
WORDS = {"Anger": "ANG", "Disgust": "DIS", "Fear": "FEA", "Happy": "HAP", "Neutral": "NEU", "Sad": "SAD"}


def clip_name(name: str) -> str:
    """Return the name of a clip in today's copy; that of one wav file was another before October 2022."""
    return KNOWN_FAULTS["cremad"].renamed.get(name, name)


@attrs.frozen
class Layout:
    """Possible names for the folders of the dataset, as patterns under its root.

    Args:
        audio: Folders of NAME.wav, or of stored spectrograms; new wav files go into the first of the first three.
        frames: Folders of NAME/ with numbered jpg files; new ones go into the first.
        videos: Videos from which `prepare` makes sound and frames; of two of one clip the first pattern counts.
        lists: Folders that may hold the split lists.
        name: Pattern of a clip name; its only group is the label.
        prepare: The command that makes the frames; `{root}` stands for the data root.
    """

    audio: tuple[str, ...]
    frames: tuple[str, ...]
    videos: tuple[str, ...]
    lists: tuple[str, ...]
    name: re.Pattern[str]
    prepare: str

    def find(self, root: Path) -> "Folders":
        """Find sound and frames under `root`.

        Raises:
            RecipeError: If a folder is absent; the fix is `prepare` where there are videos.
        """
        audio, frames = existing(root, self.audio), existing(root, self.frames)
        if audio and frames:
            lists = (root / name for name in self.lists)
            return Folders(audio, frames, next((folder for folder in lists if list_names(folder)), None))
        if any(next(root.glob(pattern), None) for pattern in self.videos) or (root / VIDEO_FOLDER).is_dir():
            raise RecipeError(
                f"{self.audio_folder(root)} should hold wav files, and {root / self.frames[0]} frames",
                found=f"videos that are not prepared yet, in {root}",
                fix=f"run `{self.prepare.format(root=root)}`",
            )
        raise RecipeError(
            f"{root} should hold wav files in {' or '.join(self.audio[:3])}, and frames in {self.frames[0]}/NAME/*.jpg "
            f"or videos in {VIDEO_FOLDER}",
            found=f"sound alone, in {audio[0]}" if audio else listing(root),
            fix=f"get {VIDEO_FOLDER} of the repository CREMA-D as well"
            if audio
            else "point --data-root to the folder that holds them, or leave it out to train on a small synthetic set",
        )

    def audio_folder(self, root: Path) -> Path:
        """Return the folder of the wav files; the first of the possible ones if none exists."""
        folders = [root / name for name in self.audio[:3] if (root / name).is_dir()]
        return folders[0] if folders else root / self.audio[0]

    def rows(self, folders: "Folders", classes: tuple[str, ...]) -> tuple[Row, ...]:
        """List every clip that has a sound file or a frame folder; the class is a part of its name."""
        sound = {path.stem for folder in folders.audio for path in folder.iterdir() if path.suffix in SOUND_ENDINGS}
        frames = {path.name for folder in folders.frames for path in folder.iterdir()}
        names = set(map(clip_name, sound | frames))
        matches = [match for name in sorted(names) if (match := self.name.fullmatch(name)) and match[1] in classes]
        if not matches:
            raise RecipeError(
                f"Names in {listed(folders.audio)} and {listed(folders.frames)} should match {self.name.pattern}",
                found=f"{listing(folders.audio[0])} and {listing(folders.frames[0])}",
                fix="point --data-root to the data",
            )
        return tuple(Row(match[0], match[1]) for match in matches)

    def find_videos(self, root: Path) -> tuple[Path, ...]:
        """List one video of each clip, in order.

        Raises:
            RecipeError: If there are none.
        """
        videos = find_videos(root, self.videos)
        kinds = [Path(pattern).parent.name + Path(pattern).suffix for pattern in self.videos]
        chosen: dict[str, Path] = {}
        for video in sorted(videos, key=lambda video: kinds.index(video.parent.name + video.suffix)):
            chosen.setdefault(video.stem, video)
        return tuple(sorted(chosen.values()))


@attrs.frozen
class Folders:
    """Folders of the sound, of the frame folders, and of the split lists if there are any."""

    audio: tuple[Path, ...]
    frames: tuple[Path, ...]
    lists: Path | None


def layout_of(fps: int) -> Layout:
    """Return the folder names of the official download and of the papers' code, for frames at `fps` per second."""
    rate = f"Image-{fps:02d}-FPS"
    return Layout(
        audio=(
            *("AudioWAV", "Audio", "audio", "audio/train", "audio/test"),
            *("Audio-1004", "Audio-299", "audio/*_fbank", "audio/*_spec"),  # spectrograms of Fan et al., Zhang et al.
        ),
        # visual/ of Wei et al. (ICML 2024) has one frame per second, as the code of Peng et al. made them.
        frames=(rate, f"visual/*_imgs/{rate}", *(["visual"] if fps == 1 else [])),
        videos=(f"{VIDEO_FOLDER}/*.flv", f"{VIDEO_FOLDER}/*.mp4", "VideoMP4/*.mp4"),
        lists=(".", "CREMAD", "cremad", "annotations", "data/CREMAD", "data"),
        name=re.compile(r"\d{4}_[A-Z]{3}_([A-Z]{3})_[A-Z]{1,2}"),
        prepare=f"python recipes/cremad.py prepare --data-root {{root}} --fps {fps}",
    )


def list_names(folder: Path) -> tuple[str, str] | None:
    """Return the names of the training and the test list in a folder, or None if it has none.

    These are `train.csv` and `test.csv`, or `my_train_cre.txt` and `my_test_cre.txt` of Zhang et al. (CVPR 2024).
    """
    return next((names for names in LISTS if (folder / names[0]).is_file()), None)


def read_clips(path: Path, classes: Sequence[str]) -> tuple[Row, ...]:
    """Read a list: a csv file of name and label, or a txt file of lines such as `1001_DFA_ANG_XX.flv Anger`.

    Raises:
        RecipeError: As `read_list`.
    """
    if path.suffix == ".csv":
        return read_list(path, classes)
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines_of(path), 1):
        name, _, word = line.strip().partition(".flv ")
        if not line.strip():
            continue
        if word not in WORDS or name.split("_")[2:3] != [WORDS[word]]:
            raise RecipeError(
                f"{path}:{number} should be a line such as `1001_DFA_ANG_XX.flv Anger`",
                found=repr(line),
                fix="correct the line",
            )
        rows[name] = Row(name, WORDS[word])
    if not rows:
        raise RecipeError(
            f"{path} should have lines such as `1001_DFA_ANG_XX.flv Anger`", found="none", fix="restore the file"
        )
    return tuple(rows.values())


def listed_split(folder: Path, classes: Sequence[str], seed: int, *, validation: bool = True) -> tuple[Split, str]:
    """Read `train.csv` and `test.csv`, and `val.csv` and `my_train.csv` (the rest of train.csv) where they exist.

    `list_names` has other names of the first two; `val.csv` may be `valid.csv`. Without it, one ninth of every class of
    the training list is held out: for CREMA-D 745 clips, one more than in test.csv. Without `validation`, all of the
    training list is for training.

    Returns:
        The split, and a line about its origin.
    """
    train, test = (read_clips(folder / name, classes) for name in list_names(folder) or LISTS[0])
    if not validation:
        split, origin = Split(train, (), test), f"lists in {folder}; nothing held out for validation"
    elif names := [name for name in ("val.csv", "valid.csv") if (folder / name).is_file()]:
        val = read_list(folder / names[0], classes)
        own = folder / "my_train.csv"
        held = {row.name for row in val}
        rest = read_list(own, classes) if own.is_file() else tuple(row for row in train if row.name not in held)
        split, origin = Split(rest, val, test), f"lists in {folder}, {names[0]} included"
    else:
        split = Split(*hold_out(train, VAL_SHARE, seed), test)
        origin = f"lists in {folder}; for validation 1/9 of every class of the training list, seed {seed}"
    check_disjoint(split.parts, row_name, fix="restore the lists, or use `--split random`")
    return split, origin
