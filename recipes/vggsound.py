"""VGGSound: which of 309 sounds is made in a 10-second clip, by what is heard and seen?

    python recipes/vggsound.py --methods none ogm_ge                      a small synthetic set
    python recipes/vggsound.py prepare --data-root DIR                    frames and sound from videos, once
    python recipes/vggsound.py --data-root DIR --methods none ogm_ge      the paper's training

DIR holds `vggsound.csv` (video id, start second, label, train or test; no header), also in `data/VGGSound/`, and one of
    train-audios/train-set/NAME.wav, train-videos/train-set-img/Image-01-FPS/NAME.mp4/*.jpg, test-...    (OGM-GE code)
    audio/train-audios/train-set/NAME.wav, video/train-set-img/Image-01-FPS/NAME.mp4/*.jpg, test-...     (DGL code)
    audio/NAME.wav (or .npy with --audio-frontend stored), visual/NAME/*.jpg                (BalanceBenchmark code)
or {train,test}-videos/{train,test}-set/NAME.mp4, or videos/NAME.mp4, for `prepare`. NAME is `<YouTube id>_<start>`;
zeros before the start do not matter. Other folders: --audio-dir, --visual-dir. Without vggsound.csv, train.csv and
test.csv of lines `NAME.mp4,label` do.

Hyper-parameters are those of the OGM-GE authors (Peng et al., CVPR 2022). What differs from their code: classes are the
sorted labels of the csv file, not those of the clips that happen to be on disk; the best epoch is selected on a tenth
of the training clips; evaluation takes the centre 5 s of sound and the centre frames of thirds of a clip, training
random ones; clips that lack a modality are counted and reported.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_int
from recipe_common.cli import main
from recipe_common.data.prepare.engine import parse_preparation, verify
from recipe_common.data.prepare.video import VideoJob, find_videos, prepare_videos
from recipe_common.data.samples.audiovisual import SyntheticClips
from recipe_common.data.samples.clips import (
    ClipPreparation,
    ClipSettings,
    Places,
    flat_job,
    open_clips,
    with_validation,
)
from recipe_common.data.samples.splits import Split
from recipe_common.data.samples.youtube import disjoint, read_named_list, read_vggsound
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.errors import RecipeError
from recipe_common.models.clips import audio_visual_net
from recipe_common.models.fusion import describe
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag, group
from recipe_common.settings.shared import Settings

PARTS = ("train", "test")
PLACES = Places(
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
SYNTHETIC_LABELS = (
    "air horn",
    "cat purring",
    "child speech, kid speaking",
    "dog barking",
    "female speech, woman speaking",
    "male speech, man speaking",
    "motorboat, speedboat acceleration",
    "people whistling",
    "playing theremin",
    "race car, auto racing",
    "vehicle horn, car horn, honking",
    "wind chime",
)


@attrs.frozen(kw_only=True)
class VggsoundSettings:
    """Settings of this dataset and its model."""

    title: ClassVar[str] = "VGGSound"

    clips: ClipSettings = group(ClipSettings)
    num_classes: int = flag(309, "how many labels the csv file must have", number=positive_int, metavar="C")


def load(settings: Settings[VggsoundSettings]) -> Data:
    """Find, split and open the clips; without `--data-root` those of a small synthetic set."""
    own, root = settings.own, settings.data.data_root or synthetic_root()
    listed, origin = read_split(root)
    classes = tuple(sorted({row.label for part in (listed.train, listed.test) for row in part}))
    if len(classes) != own.num_classes:
        raise RecipeError(
            f"Expected {own.num_classes} labels in {origin}. Found {len(classes)}. Fix: restore the file, or pass "
            f"--num-classes {len(classes)} if it is meant to be a part of the dataset."
        )
    folders = PLACES.find(root, own.clips)
    split, origin = with_validation(listed, origin, seed=own.clips.split_seed, wanted=settings.data.validation)
    return open_clips(settings, own.clips, root, folders, split, classes, (f"data: {root}", f"split: {origin}"))


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


def synthetic_root() -> Path:
    """Return the folder of a small set with the csv file and folders of the OGM-GE code, made at the first call.

    30 training and 8 test clips of each of 12 labels. On disk, starts have six digits in the test part alone.
    """
    parts = {"train": synthetic_clips("train", "d", 30), "test": synthetic_clips("test_", "06d", 8)}

    def write(root: Path) -> None:
        lines = []
        for part, clips in parts.items():
            frames = root / f"{part}-videos/{part}-set-img/Image-01-FPS"
            clips.write(root / f"{part}-audios/{part}-set", frames)
            for folder in sorted(frames.iterdir()):
                folder.rename(f"{folder}.mp4")
            for name, label in zip(clips.names, clips.labels, strict=True):
                lines.append(f'{name[:11]},{int(name[12:])},"{SYNTHETIC_LABELS[label]}",{part}\n')
        (root / "vggsound.csv").write_text("".join(lines), newline="")

    return synthetic_folder("vggsound", tuple(parts.items()), write)


def synthetic_clips(prefix: str, start: str, per_label: int) -> SyntheticClips:
    """Describe clips with ids of 11 characters, as YouTube has them, and starts in the given format."""
    labels = tuple(range(len(SYNTHETIC_LABELS))) * per_label
    names = tuple(f"{prefix}{index:06d}_{index:{start}}" for index in range(len(labels)))
    return SyntheticClips(names, labels, len(SYNTHETIC_LABELS), seed=per_label)


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were videos that could not be read."""
    settings = parse_preparation(
        ClipPreparation, "vggsound.py prepare", "Frames, one per second, and sound from the videos.", arguments
    )
    root, workers = settings.data_root, settings.workers
    if settings.verify:
        return verify(root, workers=workers)
    jobs = [video_job(root, video) for video in find_videos(root, PLACES.videos)]
    return prepare_videos(root, jobs, fps=1, workers=workers, short_side=settings.short_side)


def video_job(root: Path, video: Path) -> VideoJob:
    """Put frames and sound where the OGM-GE code has them, or those of videos/ into visual/ and audio/."""
    part = video.parent.name.removesuffix("-set")
    if part not in PARTS:
        return flat_job(root, video)
    frames = root / f"{part}-videos/{part}-set-img/Image-01-FPS" / video.name
    return VideoJob(video, frames, root / f"{part}-audios/{part}-set/{video.stem}.wav")


def build_model(settings: Settings[VggsoundSettings], data: Data) -> nn.Module:
    return audio_visual_net(len(data.classes), settings.own.clips.fusion)


def balance(settings: Settings[VggsoundSettings]) -> Mapping[str, Any]:
    return describe(("audio", "visual"), settings.own.clips.fusion)


OGM = {"alpha": 0.1, "start_epoch": 0, "end_epoch": 50}  # README of the OGM-GE code, advice for VGGSound
# The OGM-GE code: all training clips, 5 s drawn at random in testing too, the first three frames, best epoch on test.
OFFICIAL = {"select": "test", "validation": False, "crop": "random", "frame_choice": "first"}

RECIPE = Recipe(
    name="vggsound",
    title="VGGSound: audio-visual event recognition",
    settings=VggsoundSettings,
    defaults={
        # main.py of the OGM-GE code.
        "epochs": 100,
        "batch_size": 64,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "step_size": 70,
        "gamma": 0.1,
        # Its dataset code: 5 of 10 s at 16 kHz, log magnitude of a (129, 626) spectrogram, three frames.
        "audio_frontend": "stft16k",
        "frames": 3,
    },
    synthetic_defaults={
        # 0.4 s of 0.8 s as a (64, 64) spectrogram, one (64, 64) picture, and larger steps.
        "num_classes": len(SYNTHETIC_LABELS),
        "audio_rate": 8_000,
        "audio_seconds": 0.4,
        "n_fft": 126,
        "hop": 50,
        "image_size": 64,
        "frames": 1,
        "epochs": 8,
        "batch_size": 16,
        "lr": 1e-2,
        "step_size": 6,
        "log_every": 1,
    },
    method_options={
        "ogm": OGM,
        "ogm_ge": OGM,
        "dgl": {"alpha": 2.0},  # the VGGSound script of the DGL code, as is its learning rate
    },
    # The DGL code does as the OGM-GE code, with full batches only.
    protocols={"official": OFFICIAL, "dgl": {**OFFICIAL, "drop_last": "both", "lr": 2e-3}},
    load=load,
    build_model=build_model,
    balance=balance,
    commands={"prepare": prepare_main},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
