"""Kinetics-Sounds: classification of 10-second clips into 31 actions, all of them visible and audible.

    python recipes/kinetics_sounds.py --methods none ogm_ge                      a small synthetic set
    python recipes/kinetics_sounds.py prepare --data-root DIR                    frames and sound from videos, once
    python recipes/kinetics_sounds.py --data-root DIR --methods none ogm_ge      the paper's training

DIR holds one of
    my_train.txt, my_test.txt, audio/NAME.wav, visual/NAME/frame_00001.jpg       the OGM-GE code; audio_spec/NAME.npy or
                                                                                 .pkl with --audio-frontend stored
    audio/{train,test}/CLASS/NAME.wav, visual/{train_img,val_img}/Image-01-FPS/CLASS/NAME/*.jpg       the DGL code
    KS.json or KS_train_val.json, audio/NAME.pkl, visual/NAME.hdf5               the BML (OGM-GE, TPAMI 2024) code
or for `prepare` videos/NAME.mp4 with the lists, or Kinetics-400: {train,val}/CLASS/NAME.mp4, or {train,val}/NAME.mp4
with these lists or with annotations/{train,val}.csv. NAME is `<YouTube id>_<start>_<end>` or `<id>_<start>`; zeros
before a number do not matter. Other folders: --audio-dir, --visual-dir, --train-list, --test-list.

Hyper-parameters are those of the OGM-GE authors (Peng et al., CVPR 2022). Differences from their code: the best epoch
is selected on a tenth of the training list, a frame of each third of a clip is drawn in training, and clips that lack a
modality are counted and reported.
"""

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.cli import main
from recipe_common.data.datasets.kinetics_sounds import CLASSES, LAYOUT, read_split
from recipe_common.data.datasets.kinetics_videos import video_jobs
from recipe_common.data.datasets.known_faults import KNOWN_FAULTS
from recipe_common.data.prepare.engine import parse_preparation, verify
from recipe_common.data.prepare.video import prepare_videos
from recipe_common.data.samples.clips import (
    ClipPreparation,
    ClipSettings,
    open_clips,
    with_validation,
)
from recipe_common.data.synthetic.kinetics_sounds import synthetic_root
from recipe_common.models.clips import audio_visual_net
from recipe_common.models.fusion import describe
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag, group
from recipe_common.settings.shared import Settings


@attrs.frozen(kw_only=True)
class KineticsSettings:
    """Settings of this dataset and its model."""

    title: ClassVar[str] = "Kinetics-Sounds"

    clips: ClipSettings = group(ClipSettings)
    train_list: str | None = flag(
        None, "list to read instead of my_train.txt; lines of clip name and label", metavar="FILE"
    )
    test_list: str | None = flag(None, "list to read instead of my_test.txt", metavar="FILE")


def load(settings: Settings[KineticsSettings]) -> Data:
    """Find, split and open the clips; without `--data-root` those of a small synthetic set."""
    own, root = settings.own, settings.data.data_root or synthetic_root()
    folders = LAYOUT.find(root, own.clips)
    listed, origin = read_split(root, own.train_list, own.test_list)
    split, origin = with_validation(listed, origin, seed=own.clips.split_seed, wanted=settings.data.validation)
    lines = (f"data: {root}", f"split: {origin}")
    faults = KNOWN_FAULTS["kinetics_sounds"].samples
    return open_clips(settings, own.clips, root, folders, split, CLASSES, lines, faults=faults)


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were videos that could not be read."""
    settings = parse_preparation(
        ClipPreparation, "kinetics_sounds.py prepare", "Frames, one per second, and sound from the videos.", arguments
    )
    root, workers = settings.data_root, settings.workers
    if settings.verify:
        return verify(root, workers=workers)
    return prepare_videos(root, video_jobs(root), fps=1, workers=workers, short_side=settings.short_side)


def build_model(settings: Settings[KineticsSettings], data: Data) -> nn.Module:
    return audio_visual_net(len(data.classes), settings.own.clips.fusion)


def balance(settings: Settings[KineticsSettings]) -> Mapping[str, Any]:
    return describe(("audio", "visual"), settings.own.clips.fusion)


OGM = {"alpha": 0.1, "start_epoch": 0, "end_epoch": 50}  # README of the OGM-GE code; it names no value for this dataset

RECIPE = Recipe(
    name="kinetics_sounds",
    title="Kinetics-Sounds: audio-visual action recognition",
    settings=KineticsSettings,
    defaults={
        # main.py of the OGM-GE code.
        "epochs": 100,
        "batch_size": 64,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "step_size": 70,
        "gamma": 0.1,
        # Its process_audio.py and dataset code: Kaldi filter banks (1024, 128), three frames.
        "audio_frontend": "fbank",
        "frames": 3,
    },
    synthetic_defaults={
        # Half a second of sound as (48, 40) filter banks, one (64, 64) picture, and larger steps.
        "audio_rate": 8_000,
        "mel_bins": 40,
        "fbank_frames": 48,
        "image_size": 64,
        "frames": 1,
        "epochs": 10,
        "batch_size": 16,
        "lr": 1e-2,
        "step_size": 7,
        "log_every": 1,
    },
    method_options={
        "ogm": OGM,
        "ogm_ge": OGM,
        "dgl": {"alpha": 3.0},  # the better of two in the Kinetics-Sounds scripts of the DGL code
        "inforeg": {"strength": {"audio": 0.95, "visual": 0.1}},  # literals of the InfoReg code, for any dataset
    },
    protocols={
        # The OGM-GE code: all of my_train.txt, the first frame of each third, the best epoch on test is the result.
        "official": {"select": "test", "validation": False, "frame_choice": "start"},
        # The DGL code: 5 s of sound drawn at random in testing too, the first three frames, full batches only.
        "dgl": {
            "select": "test",
            "validation": False,
            "audio_frontend": "stft16k",
            "crop": "random",
            "frame_choice": "first",
            "drop_last": "both",
            "lr": 2e-3,
        },
    },
    load=load,
    build_model=build_model,
    balance=balance,
    commands={"prepare": prepare_main},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
