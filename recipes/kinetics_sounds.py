"""Kinetics-Sounds: which of 31 actions, all to be seen and heard, does a 10-second clip show?

    python recipes/kinetics_sounds.py --methods none ogm_ge                      a small synthetic set
    python recipes/kinetics_sounds.py prepare --data-root DIR                    frames and sound from videos, once
    python recipes/kinetics_sounds.py --data-root DIR --methods none ogm_ge      the paper's training

DIR holds one of
    my_train.txt, my_test.txt, audio/NAME.wav, visual/NAME/frame_00001.jpg       the OGM-GE code; audio_spec/NAME.npy or
                                                                                 .pkl with --audio-frontend stored
    audio/{train,test}/CLASS/NAME.wav, visual/{train_img,val_img}/Image-01-FPS/CLASS/NAME/*.jpg       the DGL code
    KS.json or KS_train_val.json, audio/NAME.pkl, visual/NAME.hdf5               the BML (OGM-GE, TPAMI 2024) code
or videos/NAME.mp4 with the lists, or {train,val}/CLASS/NAME.mp4 of Kinetics-400, for `prepare`. NAME is `<YouTube
id>_<start>_<end>` or `<id>_<start>`; zeros before a number do not matter. Other folders: --audio-dir, --visual-dir,
--train-list, --test-list.

Hyper-parameters are those of the OGM-GE authors (Peng et al., CVPR 2022). What differs from their code: the best epoch
is selected on a tenth of the training list, a frame of each third of a clip is drawn in training, and clips that lack a
modality are counted and reported.
"""

import argparse
import sys
from pathlib import Path

from torch import nn

from recipe_common.cli import main
from recipe_common.data.cache.feed import add_feed_arguments
from recipe_common.data.datasets.kinetics_sounds import CLASSES, PLACES, read_split, video_jobs
from recipe_common.data.prepare.engine import prepare_parser, verify
from recipe_common.data.prepare.video import prepare_videos
from recipe_common.data.samples.clips import (
    CLIP_DEFAULTS,
    add_clip_arguments,
    add_short_side,
    balance,
    open_clips,
    with_validation,
)
from recipe_common.data.synthetic.kinetics_sounds import synthetic_root
from recipe_common.models.clips import audio_visual_net
from recipe_common.recipe import Data, Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this dataset and its model."""
    add = parser.add_argument_group("Kinetics-Sounds").add_argument
    add_clip_arguments(add)
    add_feed_arguments(parser)
    add("--train-list", metavar="FILE", help="instead of my_train.txt; clip name and label, by commas or spaces")
    add("--test-list", metavar="FILE", help="instead of my_test.txt")


def load(args: argparse.Namespace) -> Data:
    """Find, split and open the clips; without `--data-root` those of a small synthetic set."""
    root = synthetic_root() if args.data_root is None else Path(args.data_root)
    folders = PLACES.find(root, args)
    split, origin = with_validation(*read_split(args, root), args)
    return open_clips(args, root, folders, split, CLASSES, (f"data: {root}", f"split: {origin}"))


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were videos that could not be read."""
    parser = prepare_parser("kinetics_sounds.py prepare", "Frames, one per second, and sound from the videos.")
    add_short_side(parser)
    args = parser.parse_args(arguments)
    if args.verify:
        return verify(args.data_root, workers=args.workers)
    jobs = video_jobs(args.data_root)
    return prepare_videos(args.data_root, jobs, fps=1, workers=args.workers, short_side=args.short_side)


def build_model(args: argparse.Namespace, data: Data) -> nn.Module:
    return audio_visual_net(len(data.classes), args.fusion)


OGM = {"alpha": 0.1, "start_epoch": 0, "end_epoch": 50}  # README of the OGM-GE code; it names no value for this dataset

RECIPE = Recipe(
    name="kinetics_sounds",
    title="Kinetics-Sounds: audio-visual action recognition",
    add_arguments=add_arguments,
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
        **CLIP_DEFAULTS,
        "audio_frontend": "fbank",
        "frames": 3,
        "train_list": None,
        "test_list": None,
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
