"""CREMA-D: which of six emotions does a speaker show, by voice and face?

    python recipes/cremad.py --methods none ogm_ge                      a small synthetic set, minutes on a laptop
    python recipes/cremad.py prepare --data-root DIR                    frames and sound from the videos, once
    python recipes/cremad.py --data-root DIR --methods none ogm_ge      the paper's training

DIR is a download of https://github.com/CheyneyComputerScience/CREMA-D (`AudioWAV/NAME.wav`, `VideoFlash/NAME.flv`), or
what other code made of it: `AudioWAV`, `Audio` or `audio` with NAME.wav, and `Image-01-FPS/NAME/` with numbered jpg
files. NAME is `<actor>_<sentence>_<emotion>_<level>`, such as `1001_DFA_ANG_XX`.

Hyper-parameters are those of the OGM-GE authors (Peng et al., CVPR 2022). Three things differ from their code: the best
epoch is selected on validation clips and never on the test clips, frames are sorted, and clips that lack a modality are
counted and reported. Their lists share all speakers between training and test; `--split speaker` does not.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from recipe_common.arguments import positive_float, positive_int, seed_int, share_float
from recipe_common.cli import main
from recipe_common.data.cache.feed import add_feed_arguments
from recipe_common.data.datasets.cremad import CLASS_ORDERS, Folders, layout_of, listed_split
from recipe_common.data.prepare.engine import prepare_parser, verify
from recipe_common.data.prepare.video import VideoJob, find_videos, prepare_videos
from recipe_common.data.readers.audio import Spectrogram
from recipe_common.data.readers.frames import Frames
from recipe_common.data.samples.assemble import open_samples
from recipe_common.data.samples.audiovisual import audio_source, frames_source
from recipe_common.data.samples.splits import Split, random_split, speaker_split
from recipe_common.data.synthetic.cremad import synthetic_root
from recipe_common.models.clips import audio_visual_net
from recipe_common.models.fusion import FUSIONS, describe
from recipe_common.recipe import Data, Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this dataset and its model."""
    add = parser.add_argument_group("CREMA-D").add_argument
    add("--split", choices=("official", "random", "speaker"), help="lists on disk, 80/10/10 %% of clips, or of actors")
    add("--split-seed", type=seed_int, help="decides what is held out, independently of --seed")
    add("--class-order", choices=tuple(CLASS_ORDERS), help="which of the two published class indices")
    add("--min-found", type=share_float, metavar="SHARE", help="share of the listed clips that must be on disk")
    add("--fps", type=positive_int, help="read the folder Image-<fps>-FPS")
    add("--frames", type=positive_int, help="frames per clip")
    add("--image-size", type=positive_int, metavar="PIXELS")
    add("--audio-rate", type=positive_int, metavar="HZ")
    add("--audio-seconds", type=positive_float, help="waveforms are repeated and cut to this length")
    add("--n-fft", type=positive_int, metavar="SAMPLES", help="window of the spectrogram")
    add("--hop", type=positive_int, metavar="SAMPLES", help="step of the spectrogram")
    add("--fusion", choices=FUSIONS)
    add_feed_arguments(parser)


def load(args: argparse.Namespace) -> Data:
    """Find, split and open the clips; without `--data-root` those of a small synthetic set."""
    root = synthetic_root() if args.data_root is None else Path(args.data_root)
    classes = CLASS_ORDERS[args.class_order]
    folders = layout_of(args.fps).find(root)
    split, origin = choose_split(args, folders, classes)
    sources = (
        audio_source([folders.audio], Spectrogram(args.audio_rate, args.audio_seconds, args.n_fft, args.hop)),
        frames_source([folders.frames], Frames(args.frames, args.image_size)),
    )
    lines = (f"data: {folders.audio}, {folders.frames}", f"split: {origin}")
    return open_samples(args, root, classes, split, sources, lines)


def choose_split(args: argparse.Namespace, folders: Folders, classes: tuple[str, ...]) -> tuple[Split, str]:
    """Return the split and a line that says where it comes from; without lists, `official` is the same as `random`."""
    seed = args.split_seed
    if args.split == "official" and folders.lists:
        return listed_split(folders.lists, classes, seed, validation=args.validation)
    rows = layout_of(args.fps).rows(folders, classes)
    if args.split == "speaker":
        split, origin = speaker_split(rows, lambda name: name[:4], seed), f"80/10/10 % of the actors, seed {seed}"
    else:
        note = "; there is no train.csv" if args.split == "official" else ""
        split, origin = random_split(rows, seed), f"80/10/10 % of every class, seed {seed}{note}"
    return (split, origin) if args.validation else (split.without_validation(), f"{origin}, validation added to train")


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were videos that could not be read."""
    parser = prepare_parser("cremad.py prepare", "Frames and sound from the videos.")
    parser.add_argument("--fps", type=positive_int, default=1, help="frames per second of video")
    args = parser.parse_args(arguments)
    if args.verify:
        return verify(args.data_root, workers=args.workers)
    layout = layout_of(args.fps)
    audio, frames = layout.audio_folder(args.data_root), args.data_root / layout.frames
    videos = find_videos(args.data_root, [f"{layout.videos}/*.flv"])
    jobs = [VideoJob(video, frames / video.stem, audio / f"{video.stem}.wav") for video in videos]
    return prepare_videos(args.data_root, jobs, fps=args.fps, workers=args.workers)


def build_model(args: argparse.Namespace, data: Data) -> nn.Module:
    return audio_visual_net(len(data.classes), args.fusion)


def balance(args: argparse.Namespace) -> Mapping[str, Any]:
    return describe(("audio", "visual"), args.fusion)


OGM = {"alpha": 0.8, "start_epoch": 0, "end_epoch": 50}  # README of the OGM-GE code, advice for CREMA-D

RECIPE = Recipe(
    name="cremad",
    title="CREMA-D: audio-visual emotion recognition",
    add_arguments=add_arguments,
    defaults={
        # main.py of the OGM-GE code: SGD, StepLR, one frame, concatenation.
        "epochs": 100,
        "batch_size": 64,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "step_size": 70,
        "gamma": 0.1,
        "frames": 1,
        "fps": 1,
        "image_size": 224,
        "fusion": "concat",
        # Its dataset code: 3 s at 22,050 Hz, log magnitude of a (257, 188) spectrogram, classes as in its stat.csv.
        "audio_rate": 22_050,
        "audio_seconds": 3.0,
        "n_fft": 512,
        "hop": 353,
        "class_order": "official",
        # Ours: its code skips missing clips silently and has no validation clips.
        "split": "official",
        "split_seed": 0,
        "min_found": 0.9,
    },
    synthetic_defaults={
        # A (64, 64) spectrogram and picture, and steps as large as 6 epochs of 300 clips need.
        "audio_rate": 8_000,
        "audio_seconds": 1.0,
        "n_fft": 126,
        "hop": 126,
        "image_size": 64,
        "epochs": 6,
        "batch_size": 16,
        "lr": 1e-2,
        "step_size": 5,
        "log_every": 1,
    },
    method_options={
        "ogm": OGM,
        "ogm_ge": OGM,
        "dgl": {"alpha": 5.0},  # the better of two in the CREMA-D scripts of the DGL code
        "mslr": {"init": {"audio": 0.9, "visual": 1.1}},  # the CREMA-D script of the AGM code, as is the patience
        "mses": {"patience": 80},
    },
    synthetic_options={
        # The easy audio is far ahead here, and 0.8 would all but stop it; 0.1 is the README's other advice.
        "ogm": {"alpha": 0.1},
        "ogm_ge": {"alpha": 0.1},
        "relearning": {"period": 2, "count": 2},
        "mses": {"patience": 2},
    },
    protocols={
        # The code of the OGM-GE paper: every clip of train.csv is trained on, and the best epoch on test is the result.
        "official": {"select": "test", "validation": False},
        "dgl": {"select": "test", "validation": False, "drop_last": "both", "lr": 2e-3},
        "relearning": {
            "select": "test",
            "class_order": "alphabetical",
            "frames": 2,
            "epochs": 90,
            "lr": 2e-3,
            "schedule": "constant",
        },
    },
    load=load,
    build_model=build_model,
    balance=balance,
    commands={"prepare": prepare_main},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
