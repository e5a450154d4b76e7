"""VGGSound: classification of 10-second clips into 309 kinds of sounds, by sound and picture.

    python recipes/vggsound.py --methods none ogm_ge                      a small synthetic set
    python recipes/vggsound.py prepare --data-root DIR                    frames and sound from videos, once
    python recipes/vggsound.py --data-root DIR --methods none ogm_ge      the paper's training

DIR holds `vggsound.csv` (video id, start second, label, train or test; no header), also in `data/VGGSound/`, and one of
    train-audios/train-set/NAME.wav, train-videos/train-set-img/Image-01-FPS/NAME.mp4/*.jpg, test-...    (OGM-GE code)
    audio/train-audios/train-set/NAME.wav, video/train-set-img/Image-01-FPS/NAME.mp4/*.jpg, test-...     (DGL code)
    audio/NAME.wav (or .npy with --audio-frontend stored), visual/NAME/*.jpg                (BalanceBenchmark code)
or {train,test}-videos/{train,test}-set/NAME.mp4, videos/NAME.mp4 or video/NAME.mp4, for `prepare`. NAME is `<YouTube
id>_<start>`; zeros before the start do not matter. Other folders: --audio-dir, --visual-dir. Without vggsound.csv,
train.csv and test.csv of lines `NAME.mp4,label` are read.

Hyper-parameters are those of the OGM-GE authors (Peng et al., CVPR 2022). Differences from their code: classes are the
sorted labels of the csv file, not those of the clips that happen to be on disk; the best epoch is selected on a tenth
of the training clips; evaluation takes the centre 5 s of sound and the centre frames of thirds of a clip, training
random ones; clips that lack a modality are counted and reported.
"""

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_int
from recipe_common.cli import main
from recipe_common.data.datasets.known_faults import KNOWN_FAULTS
from recipe_common.data.datasets.vggsound import LAYOUT, read_split, video_job
from recipe_common.data.prepare.engine import parse_preparation, verify
from recipe_common.data.prepare.video import prepare_videos
from recipe_common.data.samples.clips import (
    ClipPreparation,
    ClipSettings,
    open_clips,
    with_validation,
)
from recipe_common.data.samples.faulty import fault_lines
from recipe_common.data.samples.youtube import clip_key
from recipe_common.data.synthetic.vggsound import SYNTHETIC_LABELS, synthetic_root
from recipe_common.errors import RecipeError
from recipe_common.models.clips import audio_visual_net
from recipe_common.models.fusion import describe
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag, group
from recipe_common.settings.shared import Settings


@attrs.frozen(kw_only=True)
class VggsoundSettings:
    """Settings of this dataset and its model."""

    title: ClassVar[str] = "VGGSound"

    clips: ClipSettings = group(ClipSettings)
    num_classes: int = flag(309, "number of labels that the csv file must have", number=positive_int, metavar="C")


def load(settings: Settings[VggsoundSettings]) -> Data:
    """Find, split and open the clips; without `--data-root` those of a small synthetic set."""
    own, root = settings.own, settings.data.data_root or synthetic_root()
    listed, origin = read_split(root)
    classes = tuple(sorted({row.label for part in (listed.train, listed.test) for row in part}))
    if len(classes) != own.num_classes:
        raise RecipeError(
            f"{origin} should have {own.num_classes} labels",
            found=str(len(classes)),
            fix=f"restore the file, or pass --num-classes {len(classes)} for a part of the dataset",
        )
    folders = LAYOUT.find(root, own.clips)
    split, origin = with_validation(listed, origin, seed=own.clips.split_seed, wanted=settings.data.validation)
    lines = (f"data: {root}", f"split: {origin}")
    faults = KNOWN_FAULTS["vggsound"].samples
    return open_clips(settings, own.clips, root, folders, split, classes, lines, faults=faults)


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were videos that could not be read."""
    settings = parse_preparation(
        ClipPreparation, "vggsound.py prepare", "Frames, one per second, and sound from the videos.", arguments
    )
    root, workers = settings.data_root, settings.workers
    if settings.verify:
        return verify(root, workers=workers)
    jobs = [video_job(root, video) for video in LAYOUT.find_videos(root)]
    status = prepare_videos(root, jobs, fps=1, workers=workers, short_side=settings.short_side)
    kept = (clip_key(job.video.stem) for job in jobs if job.frames.is_dir())
    for line in fault_lines(KNOWN_FAULTS["vggsound"].samples, kept):
        print(line)
    return status


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
    # The DGL code is like the OGM-GE code, with full batches only.
    protocols={"official": OFFICIAL, "dgl": {**OFFICIAL, "drop_last": "both", "lr": 2e-3}},
    load=load,
    build_model=build_model,
    balance=balance,
    commands={"prepare": prepare_main},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
